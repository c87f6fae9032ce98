//! The main service's output, kept in memory within a bound and read by `Logs`.
//!
//! In memory rather than in a file: it travels with a snapshot, and no path in the guest can be filled, truncated or
//! replaced under it.

use agent_protocol::LogStream;
use std::collections::VecDeque;

/// What a service that asks for nothing gets.
const DEFAULT_LIMIT: usize = 4 << 20;
/// The longest piece kept as one record.
const LONGEST: usize = 16 << 10;
/// What a record costs besides its text.
const OVERHEAD: usize = 48;

/// One line, or a piece of one.
pub struct Record {
    /// When it was read, ns since the epoch.
    pub time_ns: u64,
    /// Where it was written.
    pub stream: LogStream,
    /// The text with its line end, if it has one.
    pub bytes: Box<[u8]>,
}

/// Records in order, numbered from the first ever kept.
pub struct Log {
    records: VecDeque<Record>,
    first: u64,
    size: usize,
    limit: usize,
}

impl Default for Log {
    fn default() -> Self {
        Log { records: VecDeque::new(), first: 0, size: 0, limit: DEFAULT_LIMIT }
    }
}

impl Log {
    /// Sets the bound in bytes; 0 is the default.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = if limit == 0 { DEFAULT_LIMIT } else { (limit as usize).clamp(64 << 10, 64 << 20) };
        self.trim();
    }

    /// Adds output, cut at line ends.
    pub fn append(&mut self, time_ns: u64, stream: LogStream, bytes: &[u8]) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in line.chunks(LONGEST) {
                self.size += piece.len() + OVERHEAD;
                self.records.push_back(Record { time_ns, stream, bytes: piece.into() });
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.size > self.limit {
            let Some(record) = self.records.pop_front() else { return };
            self.size -= record.bytes.len() + OVERHEAD;
            self.first += 1;
        }
    }

    /// The number that the next record will have.
    pub fn end(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    /// The first kept record with this number or a later one, and its number.
    pub fn from(&self, number: u64) -> Option<(u64, &Record)> {
        let number = number.max(self.first);
        let record = self.records.get(usize::try_from(number - self.first).ok()?)?;
        Some((number, record))
    }

    /// Where to start to show the last `lines` lines, nothing older than `since_ns`.
    pub fn start(&self, lines: Option<u64>, since_ns: Option<u64>) -> u64 {
        let mut number = self.first;
        if let Some(lines) = lines {
            number = self.end();
            let mut left = lines;
            for record in self.records.iter().rev() {
                // A line end closes a line that is counted, unless it is the very last thing.
                if record.bytes.last() == Some(&b'\n') || number == self.end() {
                    if left == 0 {
                        break;
                    }
                    left -= 1;
                }
                number -= 1;
            }
        }
        let skipped =
            since_ns.map_or(0, |since| self.records.partition_point(|record| record.time_ns < since));
        number.max(self.first + skipped as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LogStream::{Stderr, Stdout};

    fn all(log: &Log, mut number: u64) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some((at, record)) = log.from(number) {
            lines.push(String::from_utf8_lossy(&record.bytes).into_owned());
            number = at + 1;
        }
        lines
    }

    #[test]
    fn output_is_kept_by_line() {
        let mut log = Log::default();
        log.append(1, Stdout, b"one\ntwo\nthr");
        log.append(2, Stderr, b"oops\n");
        log.append(3, Stdout, b"ee\n");
        assert_eq!(all(&log, 0), ["one\n", "two\n", "thr", "oops\n", "ee\n"]);
        assert_eq!(log.end(), 5);
    }

    #[test]
    fn the_last_lines_and_those_since_a_time_are_found() {
        let mut log = Log::default();
        log.append(10, Stdout, b"a\nb\nc\n");
        log.append(20, Stdout, b"d\nunfinished");
        let tail = |lines| all(&log, log.start(Some(lines), None));
        assert_eq!(tail(0), [""; 0]);
        assert_eq!(tail(1), ["unfinished"]);
        assert_eq!(tail(2), ["d\n", "unfinished"]);
        assert_eq!(tail(99).len(), 5);
        assert_eq!(all(&log, log.start(None, Some(15))), ["d\n", "unfinished"]);
        assert_eq!(all(&log, log.start(Some(4), Some(21))), [""; 0]);
    }

    #[test]
    fn the_oldest_goes_when_the_bound_is_reached() {
        let mut log = Log::default();
        log.set_limit(64 << 10);
        for number in 0..10_000 {
            log.append(number, Stdout, format!("line {number}\n").as_bytes());
        }
        assert!(log.size <= 64 << 10);
        assert_eq!(log.end(), 10_000);
        let kept = all(&log, 0);
        assert_eq!(kept.last().map(String::as_str), Some("line 9999\n"));
        assert!(kept.len() > 500 && kept.len() < 2000, "{}", kept.len());
        log.append(1, Stdout, &vec![b'x'; 1 << 20]);
        assert!(log.size <= 64 << 10);
    }
}
