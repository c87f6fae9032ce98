//! Small workloads, each a function from its size to a value that must be the same on every engine.

pub mod calls;
pub mod compute;
pub mod memory;
pub mod system;

use std::process::Command;
use std::time::Instant;

use crate::protocol::{Answer, Result};
use crate::table::{self, Outcome, Work};

/// The function of a name, timed, in this process; the answer goes to standard output.
///
/// # Errors
/// There is no such workload.
pub fn child(name: &str, size: &str) -> Result<()> {
    let Work::Micro(function) = table::find(name)?.work else {
        return Err(format!("{name} is not a small workload"));
    };
    let size = size.parse().map_err(|_| format!("no size: {size}"))?;
    let begun = Instant::now();
    let check = function(size);
    let ns = begun.elapsed().as_nanos() as u64;
    print!("{}", Answer::Done { ns, check }.line());
    Ok(())
}

/// The same in a process of its own: what it does to its memory, or a crash, stays there.
///
/// # Errors
/// It ended without an answer.
pub fn run(name: &str, size: u64) -> Outcome {
    let mut command = Command::new("/proc/self/exe");
    command.args(["micro", name, &size.to_string()]);
    let output = crate::programs::output(&mut command)?;
    match Answer::parse(&String::from_utf8_lossy(&output))? {
        Answer::Done { ns, check } => Ok((ns, check)),
        Answer::Failed(why) => Err(why),
    }
}

/// A generator whose every bit is good enough here (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
