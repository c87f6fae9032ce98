//! Lines for people and scripts, on stdout (`say!`) and stderr (`tell!`).
//!
//! Problem: the standard macros panic when nobody reads any more (`smolvm ps -a | head -1`), in the middle
//! of what the command does. Strategy: a reader that has gone stops nothing, its lines are dropped; any
//! other failure of stdout (a full disk) is kept and makes the command fail at its end ([`whole`]).

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

/// Why a result could not be written: the first time.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// A line of results on stdout.
macro_rules! say {
    ($($what:tt)*) => { $crate::ui::say::out(format_args!($($what)*)) };
}

/// A line on stderr.
macro_rules! tell {
    ($($what:tt)*) => { $crate::ui::say::err(format_args!($($what)*)) };
}

pub(crate) use {say, tell};

/// What `say!` does.
pub fn out(line: Arguments<'_>) {
    bytes(format!("{line}\n").as_bytes());
}

/// What `tell!` does. Where stderr is gone there is nobody left to hear so.
pub fn err(line: Arguments<'_>) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Results that are already bytes; whether stdout still takes more.
pub fn bytes(bytes: &[u8]) -> bool {
    if LOST.get().is_some() {
        return false;
    }
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        let _ = LOST.set(error);
        return false;
    }
    true
}

/// Whether everything said on stdout arrived, or was no longer wanted.
///
/// # Errors
/// Stdout took no more, for another reason than a reader that has gone.
pub fn whole() -> Result<()> {
    match LOST.get() {
        Some(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow!("what was asked is done, but its results cannot be written to stdout: {error}"))
        }
        _ => Ok(()),
    }
}
