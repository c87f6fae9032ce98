//! The user's terminal: raw while a session has it, always given back.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use agent_protocol::WinSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Puts standard input into raw mode until dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &self.before);
    }
}

/// Size of the terminal on standard output (or input); 80 by 24 when there is none.
pub(crate) fn size() -> WinSize {
    let size = tcgetwinsize(io::stdout().as_fd()).or_else(|_| tcgetwinsize(io::stdin().as_fd()));
    match size {
        Ok(s) if s.ws_col > 0 && s.ws_row > 0 => WinSize { rows: s.ws_row, columns: s.ws_col },
        _ => WinSize { rows: 24, columns: 80 },
    }
}
