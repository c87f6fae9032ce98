//! A terminal to type at: the program on a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A command on a terminal of its own.
pub struct Terminal {
    screen: File,
    seen: Vec<u8>,
    /// The command.
    pub child: Child,
}

impl Terminal {
    /// Starts the command on a fresh terminal of 24 lines of 80 characters.
    pub fn start(command: &mut Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("its other side");
        unlockpt(&master).expect("its other side");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("its size");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let open =
            || File::options().read(true).write(true).open(name.to_str().expect("UTF-8")).expect("open");
        let side = || Stdio::from(OwnedFd::from(open()));
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("running smolvm");
        // The command keeps Stdio's descriptors: only the child's stay when it is dropped by the caller.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { screen: File::from(master), seen: Vec::new(), child }
    }

    /// Types these bytes.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.screen.write_all(bytes).expect("typing");
    }

    /// Reads until `what` was on the screen; everything that was seen since the last such moment.
    ///
    /// # Panics
    /// When the command ends first.
    pub fn until(&mut self, what: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let text = String::from_utf8_lossy(&self.seen).into_owned();
            if let Some(at) = text.find(what) {
                self.seen = text.as_bytes()[at + what.len()..].to_vec();
                return text[..at + what.len()].to_owned();
            }
            let mut polled = [PollFd::new(&self.screen, PollFlags::IN)];
            let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
            if rustix::event::poll(&mut polled, Some(&patience)) == Ok(0) {
                let _ = self.child.kill();
                panic!("{what:?} was not shown for a minute; the screen: {text}");
            }
            // EIO: the other side is closed.
            match self.screen.read(&mut buffer) {
                Ok(n) if n > 0 => self.seen.extend_from_slice(&buffer[..n]),
                end => panic!("{what:?} was never shown ({end:?}); the screen: {text}"),
            }
        }
    }

    /// Waits for the end; the exit code.
    pub fn wait(mut self) -> Option<i32> {
        let mut rest = Vec::new();
        let _ = self.screen.read_to_end(&mut rest);
        self.child.wait().expect("waiting").code()
    }
}
