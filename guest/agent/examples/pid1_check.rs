//! PID 1 for a machine that has no vsock (QEMU): boots as the agent does, then checks itself over a Unix socket and
//! says on the console what it found. Started by tests/qemu.sh.

use agent::agent::Agent;
use agent::sys::process::{Fork, fork};
use agent_protocol::{
    Client, ExecSpec, Exit, FrameKind, FreezeSpec, HookSet, LogsSpec, Power, Reply, Request, RestoreReason,
    RestoredSpec, SERVICE_SESSION, ServiceSpec, WinSize,
};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::unix::net::UnixStream;

const SOCKET: &str = "/run/smolvm/check.sock";

fn main() {
    let world = agent::boot::surroundings().expect("booted");
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket");
    rustix::net::bind(&socket, &SocketAddrUnix::new(SOCKET).expect("a path")).expect("bound");
    rustix::net::listen(&socket, 16).expect("listening");
    let mut agent = Agent::new(socket, world).expect("an agent");
    match fork(None).expect("forked") {
        Fork::Parent(_) => agent.run(),
        Fork::Child => {
            drop(agent);
            check();
            counts();
            println!("CHECK all passed");
            let _ = connect().call(&Request::Shutdown { power: Power::Reboot, grace_ms: 2000 });
            loop {
                std::thread::park();
            }
        }
    }
}

fn connect() -> Client<UnixStream> {
    Client::new(UnixStream::connect(SOCKET).expect("the agent listens"))
}

fn shell(line: &str) -> ExecSpec {
    ExecSpec { argv: vec!["sh".into(), "-c".into(), line.into()], ..ExecSpec::default() }
}

fn run(spec: ExecSpec) -> (String, Exit) {
    let mut client = connect();
    client.start(&Request::Exec(spec)).expect("sent");
    client.started().expect("started");
    let mut text = Vec::new();
    loop {
        let frame = client.next_frame().expect("a frame");
        match frame.kind {
            FrameKind::Exit => {
                return (String::from_utf8_lossy(&text).into_owned(), frame.decode().expect("an exit"));
            }
            _ => text.extend(frame.payload),
        }
    }
}

fn says(line: &str, expected: &str) {
    let (text, exit) = run(shell(line));
    assert_eq!((text.trim_end(), exit), (expected, Exit::Code(0)), "{line}");
    println!("CHECK ok: {line} -> {expected}");
}

/// CLOCK_MONOTONIC in nanoseconds.
fn time_stamp() -> u64 {
    agent::dispatch::nanoseconds(rustix::time::ClockId::Monotonic)
}

/// Guest instructions that an operation takes, when QEMU counts them (`-icount shift=0`: then an instruction is a
/// nanosecond of the guest's time); the median of some.
fn count(what: &str, mut operation: impl FnMut()) {
    let mut counts: Vec<u64> = (0..9)
        .map(|_| {
            let before = time_stamp();
            operation();
            time_stamp() - before
        })
        .collect();
    counts.sort_unstable();
    println!("COUNT {what}: {} (first to last {counts:?})", counts[4]);
}

fn counts() {
    let none = RestoredSpec {
        reason: RestoreReason::Resume,
        realtime_ns: 2_000_000_000_123_456_789,
        seed: vec![5; 64],
        generation: [0xab; 16],
        hostname: None,
        machine_id: None,
        hooks: HookSet::default(),
        mounts: Vec::new(),
    };
    let one = |word: &str| ExecSpec { argv: vec![word.into()], ..ExecSpec::default() };
    count("ping", || drop(connect().ping().expect("a pong")));
    count("exec true", || drop(run(one("true"))));
    count("exec true by its path", || drop(run(one("/bin/true"))));
    let path = String::from("/etc");
    count("stat, in a forked copy", || {
        drop(connect().call(&Request::Stat { path: path.clone(), follow: true }).expect("a stat"))
    });
    count("freeze and thaw", || {
        connect().call(&Request::Freeze(FreezeSpec::default())).expect("frozen");
        connect().call(&Request::Thaw).expect("thawed");
    });
    connect().call(&Request::Freeze(FreezeSpec::default())).expect("frozen");
    count("restored", || drop(connect().call(&Request::Restored(none.clone())).expect("restored")));
}

fn check() {
    println!("CHECK pong {:?}", connect().ping().expect("a pong"));
    says("cat /proc/1/comm; hostname; cat /proc/self/cgroup", "init\ncheck\n0::/");
    says("cut -d' ' -f3 /proc/mounts | sort | tr '\\n' ' '", &mounts());
    says(
        "ls /sys/fs/cgroup/cgroup.procs; test -e /sys/fs/cgroup/machine || echo inside",
        "/sys/fs/cgroup/cgroup.procs\ninside",
    );
    says(
        "cat /sys/class/net/lo/operstate; ulimit -n; ls /dev/fd/0; stat -c %a /tmp /dev/shm",
        "unknown\n1024\n/dev/fd/0\n1777\n1777",
    );
    says("stat -c '%n %a %u' /run/app /run/lock", "/run/app 750 1000\n/run/lock 1777 0");
    says("echo new > /etc/new; rm /etc/old; mv /lowdir /moved; cat /etc/new", "new");
    let (text, exit) = run(ExecSpec {
        tty: Some(WinSize { rows: 9, columns: 33 }),
        user: Some("app".into()),
        ..shell("tty; stty size; id -u; echo $HOME")
    });
    assert_eq!((text.as_str(), exit), ("/dev/pts/0\r\n9 33\r\n1000\r\n/home/app\r\n", Exit::Code(0)));
    println!("CHECK ok: terminal");
    export();
    freeze();
    let Ok(Reply::Stats(stats)) = connect().call(&Request::Stats) else { panic!("stats") };
    assert!(
        stats.memory.total > 0 && stats.disk.0 > 0 && stats.processes.iter().all(|p| p.pid != 1),
        "{stats:?}"
    );
    println!("CHECK stats {stats:?}");
    let mut client = connect();
    client.start(&Request::KernelLog { follow: false }).expect("sent");
    let mut log = Vec::new();
    loop {
        let frame = client.next_frame().expect("a frame");
        if frame.kind == FrameKind::DataEnd {
            break;
        }
        log.extend(frame.payload);
    }
    assert!(String::from_utf8_lossy(&log).contains("Linux version"), "kernel log");
    println!("CHECK ok: kernel log of {} bytes", log.len());
}

fn mounts() -> String {
    let expected = if std::fs::read_to_string("/proc/mounts").is_ok_and(|text| text.contains(" / overlay ")) {
        "cgroup2 devpts devtmpfs mqueue overlay proc sysfs tmpfs tmpfs"
    } else {
        "cgroup2 cgroup2 devpts devtmpfs mqueue proc rootfs sysfs tmpfs tmpfs"
    };
    expected.to_string()
}

fn export() {
    let mut client = connect();
    client.start(&Request::ExportUpper).expect("sent");
    let mut bytes = Vec::new();
    loop {
        match client.next_frame() {
            Ok(frame) if frame.kind == FrameKind::Data => bytes.extend(frame.payload),
            Ok(_) => break,
            Err(error) => return println!("CHECK no export: {error}"),
        }
    }
    let mut reader = agent::tar::read::Reader::new(bytes.as_slice());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().expect("a tar stream") {
        let opaque = entry.xattrs.iter().any(|(name, _)| name == b"trusted.overlay.opaque");
        names.push(format!(
            "{}{}{}",
            String::from_utf8_lossy(&entry.path),
            if entry.kind == agent::tar::Kind::Character { "(gone)" } else { "" },
            if opaque { "(opaque)" } else { "" }
        ));
    }
    println!("CHECK export {names:?}");
    for name in ["etc/new", "etc/old(gone)", "lowdir(gone)", "moved(opaque)", "moved/inside"] {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
}

fn freeze() {
    let service =
        ServiceSpec { exec: shell("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"), log_limit: 0 };
    connect().service(service).expect("the service runs");
    let lines = || {
        let mut client = connect();
        client.start(&Request::Logs(LogsSpec::default())).expect("sent");
        let mut count = 0;
        while client.next_frame().expect("a frame").kind == FrameKind::Log {
            count += 1;
        }
        count
    };
    while lines() < 3 {
        std::thread::yield_now();
    }
    let hooks = HookSet { commands: vec![vec!["touch".into(), "/run/before".into()]], timeout_ms: 5000 };
    let frozen =
        connect().call(&Request::Freeze(FreezeSpec { hooks, timeout_ms: 5000, sync: true })).expect("frozen");
    println!("CHECK {frozen:?}");
    let (before, _) = (lines(), std::thread::sleep(std::time::Duration::from_millis(300)));
    assert_eq!(lines(), before, "nothing runs while frozen");
    assert!(connect().call(&Request::Exec(shell("true"))).is_err(), "nothing starts while frozen");
    let spec = RestoredSpec {
        reason: RestoreReason::Resume,
        realtime_ns: 2_000_000_000_123_456_789,
        seed: vec![5; 64],
        generation: [0xab; 16],
        hostname: Some("again".into()),
        machine_id: Some([0x11; 16]),
        hooks: HookSet::default(),
        mounts: Vec::new(),
    };
    let restored = connect().call(&Request::Restored(spec.clone())).expect("restored");
    println!("CHECK {restored:?}");
    let Reply::Restored(report) = restored else { panic!("a report") };
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    while lines() <= before {
        std::thread::yield_now();
    }
    says(
        "hostname; date -u +%Y; cat /run/smolvm/generation /etc/machine-id; ls /run/before",
        &format!("again\n2033\n{}\n{}\n/run/before", "ab".repeat(16), "11".repeat(16)),
    );
    connect().call(&Request::Freeze(FreezeSpec::default())).expect("frozen again");
    let hooks = HookSet {
        commands: vec![
            vec!["sh".into(), "-c".into(), "echo $SMOLVM_REASON > /run/after".into()],
            vec!["false".into()],
        ],
        timeout_ms: 0,
    };
    let restored = connect()
        .call(&Request::Restored(RestoredSpec { hooks, reason: RestoreReason::Fork, ..spec }))
        .expect("restored");
    println!("CHECK {restored:?}");
    says("cat /run/after", "fork");
    connect().call(&Request::Freeze(FreezeSpec::default())).expect("frozen a third time");
    connect().call(&Request::Thaw).expect("thawed");
    says("echo thawed", "thawed");
    let kill = agent_protocol::SignalSpec { signal: 9, group: true };
    connect().call(&Request::Kill { session: SERVICE_SESSION, signal: kill }).expect("killed");
    assert_eq!(connect().wait(SERVICE_SESSION).expect("an exit"), Exit::Signal(9));
}
