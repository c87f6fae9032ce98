//! What this process uses (proc(5)).

use std::fs;

/// CPU time and memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads, in milliseconds.
    pub cpu_ms: u64,
    /// CPU time of those whose names begin with the word asked for.
    pub named_ms: u64,
    /// Bytes of memory that exist for this process alone.
    pub own: u64,
    /// Bytes of files' pages that are mapped here and that others share.
    pub shared: u64,
}

/// Measures; `prefix` names threads to be counted apart. What the host does not tell counts as nothing.
pub fn usage(prefix: &str) -> Usage {
    let own_stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let named = stats.filter_map(|stat| cpu_ms(&stat).filter(|(name, _)| name.starts_with(prefix)));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |field| kib(&status, field).saturating_mul(1024);
    Usage {
        cpu_ms: cpu_ms(&own_stat).map_or(0, |(_, ms)| ms),
        named_ms: named.map(|(_, ms)| ms).sum(),
        own: bytes("RssAnon"),
        shared: bytes("RssFile").saturating_add(bytes("RssShmem")),
    }
}

/// The name in a line of `stat`, and the time in user and kernel mode (fields 14 and 15).
fn cpu_ms(stat: &str) -> Option<(String, u64)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let mut times = tail.split_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    let ticks = times.next()?.saturating_add(times.next()?);
    let (_, name) = head.split_once('(')?;
    Some((name.to_owned(), ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1)))
}

fn kib(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let stat = "7 (a) (vcpu0) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 0 0 20 0";
        let (name, ms) = cpu_ms(stat).unwrap();
        assert_eq!((name.as_str(), ms), ("a) (vcpu0", 200_000 / rustix::param::clock_ticks_per_second()));
        assert_eq!(cpu_ms("").map(|c| c.1), None);
        assert_eq!(kib("VmRSS:\t 9 kB\nRssAnon:\t  12 kB\n", "RssAnon"), 12);
    }

    #[test]
    fn memory_that_is_touched_counts() {
        let before = usage("");
        let map = crate::Mapping::anonymous(32 << 20).unwrap();
        crate::Mapping::give_back(&map, 0, 4096).unwrap();
        let file = fs::File::open("/proc/self/exe").unwrap();
        map.map_file_private(0, 4096, &file, 0).unwrap();
        map.renew(0, 4096).unwrap();
        let after = usage("no thread is called this");
        assert!(after.cpu_ms >= before.cpu_ms && after.named_ms == 0 && after.own > 0);
    }
}
