//! A look at the running machine, from /proc: processes, memory, listening sockets, space; and the kernel's log.

use crate::worker::Channel;
use crate::world::{World, read_text};
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{Listening, Memory, ProcessInfo, Stats};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Entries of a list at most.
const ENTRIES: usize = 1024;
/// The kernel's unit of CPU time in /proc (USER_HZ), in milliseconds.
const TICK_MS: u64 = 10;
/// The kernel's page, in KiB.
const PAGE_KIB: u64 = 4;

/// Serves `Stats`.
pub fn stats(world: &World) -> Stats {
    let uptime: f64 =
        read_text("/proc/uptime").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    let (busy_ms, cpus) = cpu_time(&read_text("/proc/stat"));
    let mut listening = Vec::new();
    for (file, transport, state) in
        [("tcp", "tcp", "0A"), ("tcp6", "tcp", "0A"), ("udp", "udp", "07"), ("udp6", "udp", "07")]
    {
        listening.extend(sockets(&read_text(&format!("/proc/net/{file}")), transport, state));
    }
    listening.truncate(ENTRIES);
    let disk = rustix::fs::fstatvfs(&world.root)
        .map(|disk| (disk.f_blocks * disk.f_frsize / 1024, disk.f_bavail * disk.f_frsize / 1024));
    Stats {
        uptime_ms: (uptime * 1000.0) as u64,
        busy_ms,
        cpus,
        memory: memory(&read_text("/proc/meminfo")),
        processes: processes(world),
        listening,
        disk: disk.unwrap_or_default(),
    }
}

fn memory(text: &str) -> Memory {
    let value = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    };
    Memory {
        total: value("MemTotal"),
        free: value("MemFree"),
        available: value("MemAvailable"),
        cached: value("Cached") + value("Buffers"),
        dirty: value("Dirty"),
        anonymous: value("AnonPages"),
    }
}

/// Time not idle, and the number of CPUs, from /proc/stat.
fn cpu_time(text: &str) -> (u64, u32) {
    let mut lines = text.lines().take_while(|line| line.starts_with("cpu"));
    let fields: Vec<u64> =
        lines.next().unwrap_or("").split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal: all but idle and iowait.
    let busy: u64 =
        fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, time)| time).sum();
    (busy.saturating_mul(TICK_MS), lines.count() as u32)
}

/// The user's processes: those of the group when there is one, else all.
fn processes(world: &World) -> Vec<ProcessInfo> {
    let mine = world.cgroup.as_ref().map(crate::cgroup::Cgroup::members);
    let listed = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let wanted = numbers.filter(|pid| mine.as_ref().is_none_or(|mine| mine.binary_search(pid).is_ok()));
    let mut found: Vec<ProcessInfo> =
        wanted.filter_map(|pid| process(&read_text(&format!("/proc/{pid}/stat")))).take(ENTRIES).collect();
    found.sort_by_key(|process| process.pid);
    found
}

/// One line of /proc/PID/stat (proc(5)).
fn process(stat: &str) -> Option<ProcessInfo> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    Some(ProcessInfo {
        pid: pid.parse().ok()?,
        parent: u32::try_from(number(1)?).ok()?,
        name: name.to_string(),
        state: fields.first()?.chars().next()?,
        resident: number(21)?.saturating_mul(PAGE_KIB),
        cpu_ms: number(11)?.saturating_add(number(12)?).saturating_mul(TICK_MS),
    })
}

/// The sockets of a /proc/net table that are in `state`.
fn sockets(table: &str, transport: &str, state: &str) -> Vec<Listening> {
    let lines = table.lines().skip(1).take(65536);
    let open = lines.filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let there = fields.nth(1)? == state;
        there.then(|| {
            let port = u16::from_str_radix(port, 16).ok()?;
            Some(Listening {
                transport: transport.to_string(),
                address: address_of(address)?.to_string(),
                port,
            })
        })?
    });
    open.take(ENTRIES).collect()
}

/// An address as the kernel prints it: 32-bit words of network-order bytes, each as a native number.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(8 * at..8 * at + 8)?, 16).ok().map(u32::to_ne_bytes);
    if hex.len() == 8 {
        return Some(IpAddr::V4(Ipv4Addr::from(word(0)?)));
    }
    let words = [word(0)?, word(1)?, word(2)?, word(3)?];
    let bytes: [u8; 16] = words.concat().try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(bytes)))
}

/// Serves `KernelLog`: the records as dmesg prints them.
pub fn kernel_log(channel: &mut Channel, follow: bool) {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | if follow { OFlags::empty() } else { OFlags::NONBLOCK };
    let device = match rustix::fs::open("/dev/kmsg", flags, Mode::empty()) {
        Ok(device) => device,
        Err(error) => return channel.fail(&crate::copy::path_failure("reading", "/dev/kmsg", &error.into())),
    };
    // One read is one record, of at most this size (kernel documentation, ABI/testing/dev-kmsg).
    let mut record = vec![0u8; 8192];
    let mut lines = Vec::new();
    loop {
        match rustix::io::read(&device, &mut record) {
            Ok(size) => lines.extend_from_slice(line(record.get(..size).unwrap_or_default()).as_bytes()),
            // The kernel overwrote what was to come next.
            Err(Errno::PIPE | Errno::INTR) => continue,
            Err(_) => break,
        }
        if follow || lines.len() > 32 << 10 {
            channel.data(&lines);
            lines.clear();
        }
    }
    channel.data(&lines);
    channel.send(&frame::header(FrameKind::DataEnd, 0));
}

/// `level,sequence,microseconds,flags;text` as `[seconds.microseconds] text`.
fn line(record: &[u8]) -> String {
    let record = String::from_utf8_lossy(record);
    let (head, text) = record.split_once(';').unwrap_or(("", &record));
    let text = text.lines().next().unwrap_or("");
    let time: u64 = head.split(',').nth(2).and_then(|time| time.parse().ok()).unwrap_or(0);
    format!("[{:5}.{:06}] {text}\n", time / 1_000_000, time % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat =
            "42 (a) b (c) S 1 42 42 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 1 0 9 1000 300 18446744073709551615";
        let process = process(stat).expect("a process");
        assert_eq!(
            (process.pid, process.parent, process.name.as_str(), process.state),
            (42, 1, "a) b (c", 'S')
        );
        assert_eq!((process.cpu_ms, process.resident), (2000, 1200));
        assert!(super::process("").is_none() && super::process("1 (x").is_none());
    }

    #[test]
    fn listening_sockets_are_found() {
        let table = "  sl  local_address rem_address   st\n\
            0: 0100007F:1F90 00000000:0000 0A 0\n   1: 00000000:0016 00000000:0000 01 0\n garbage\n";
        let found = sockets(table, "tcp", "0A");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].address.as_str(), found[0].port), ("127.0.0.1", 8080));
        assert_eq!(
            address_of("00000000000000000000000001000000").map(|a| a.to_string()).as_deref(),
            Some("::1")
        );
        assert!(address_of("12").is_none() && address_of("zz").is_none());
    }

    #[test]
    fn kernel_records_read_as_lines() {
        assert_eq!(
            line(b"6,339,5140900,-;NET: Registered\n SUBSYSTEM=x\n"),
            "[    5.140900] NET: Registered\n"
        );
        assert_eq!(line(b""), "[    0.000000] \n");
    }

    #[test]
    fn busy_time_leaves_out_idleness() {
        assert_eq!(cpu_time("cpu  10 0 5 1000 50 1 2 0 0 0\ncpu0 1\ncpu1 2\nintr 3\n"), (180, 2));
    }
}
