//! Lines between the benchmark and its guests: `VERB NAME DIVISOR` one way, one answer the other.

/// What can fail is told in words.
pub type Result<T> = std::result::Result<T, String>;

/// First bytes of the first process, before anything else.
pub const UP: &str = "engine-guest up";
/// The channel is open and the root is in place.
pub const READY: &str = "ready";
/// Word of the kernel's command line: the channel is vsock, not the serial port.
pub const VSOCK_WORD: &str = "engine.channel=vsock";
/// Where such a guest listens.
pub const PORT: u32 = 4321;

/// First word of a line that calls a function of `devices.rs`, with its words; the answer is as to a request.
pub const CALL: &str = "call";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Makes what the workload needs, and warms caches.
    Prepare,
    /// Does the work, timed.
    Run,
    /// Takes away what `Prepare` left running.
    Finish,
}

/// One line asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub verb: Verb,
    pub name: String,
    /// The full size is divided by this.
    pub divisor: u64,
}

impl Request {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let verb = match self.verb {
            Verb::Prepare => "prepare",
            Verb::Run => "run",
            Verb::Finish => "finish",
        };
        format!("{verb} {} {}\n", self.name, self.divisor)
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(line: &str) -> Result<Self> {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [verb, name, divisor] = words[..] else { return Err(format!("no request: {line:?}")) };
        let verb = match verb {
            "prepare" => Verb::Prepare,
            "run" => Verb::Run,
            "finish" => Verb::Finish,
            _ => return Err(format!("no verb: {verb}")),
        };
        let divisor = divisor.parse().map_err(|_| format!("no divisor: {divisor}"))?;
        Ok(Self { verb, name: name.to_owned(), divisor })
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nanoseconds by CLOCK_MONOTONIC where the work was done, and what must be the same everywhere.
    Done {
        ns: u64,
        check: u64,
    },
    Failed(String),
}

impl Answer {
    /// The line, with its end.
    pub fn line(&self) -> String {
        match self {
            Self::Done { ns, check } => format!("done {ns} {check:016x}\n"),
            Self::Failed(why) => format!("failed {}\n", why.replace(['\n', '\r'], " | ")),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(line: &str) -> Result<Self> {
        let line = line.trim();
        if let Some(why) = line.strip_prefix("failed ") {
            return Ok(Self::Failed(why.to_owned()));
        }
        let number = |rest: &str| {
            let (ns, check) = rest.split_once(' ')?;
            Some(Self::Done { ns: ns.parse().ok()?, check: u64::from_str_radix(check, 16).ok()? })
        };
        line.strip_prefix("done ").and_then(number).ok_or_else(|| format!("no answer: {line:?}"))
    }
}

/// FNV-1a, for comparing outputs.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_what_they_were() {
        let request = Request { verb: Verb::Run, name: "int".into(), divisor: 10 };
        assert_eq!(Request::parse(&request.line()), Ok(request));
        for answer in [Answer::Done { ns: 12, check: 0xabc }, Answer::Failed("exit 1: no such file".into())] {
            assert_eq!(Answer::parse(&answer.line()), Ok(answer));
        }
    }

    #[test]
    fn strange_lines_are_refused() {
        for line in ["", "run", "run int", "run int x", "jump int 1"] {
            assert!(Request::parse(line).is_err(), "{line}");
        }
        for line in ["", "done", "done 1", "done x 1", "Segmentation fault"] {
            assert!(Answer::parse(line).is_err(), "{line}");
        }
    }
}
