//! One process with its streams, and the output kept while nobody takes it.

use crate::poll::{Interest, Token};
use agent_protocol::frame::FrameKind;
use agent_protocol::{Exit, SessionInfo};
use rustix::fd::OwnedFd;
use rustix::process::Pid;
use std::collections::VecDeque;

/// How much output is kept for a pipe session nobody is attached to, in bytes.
const KEPT_UNSENT: usize = 256 << 10;
/// How much of a terminal's last output is kept to show it again, in bytes.
const KEPT_SCREEN: usize = 64 << 10;

/// Output kept in memory, the oldest dropped first.
#[derive(Default)]
pub struct Kept {
    chunks: VecDeque<(FrameKind, Vec<u8>)>,
    bytes: usize,
}

impl Kept {
    /// Keeps a piece, within `limit` bytes altogether.
    fn push(&mut self, kind: FrameKind, bytes: &[u8], limit: usize) {
        self.bytes += bytes.len();
        match self.chunks.back_mut() {
            // Many small pieces would cost more than they hold.
            Some((last, chunk)) if *last == kind && chunk.len() < 4096 => chunk.extend_from_slice(bytes),
            _ => self.chunks.push_back((kind, bytes.to_vec())),
        }
        while self.bytes > limit {
            let over = self.bytes - limit;
            let Some((_, chunk)) = self.chunks.front_mut() else { break };
            let size = chunk.len().min(over);
            self.bytes -= size;
            if size == chunk.len() {
                self.chunks.pop_front();
            } else {
                chunk.drain(..size);
            }
        }
    }

    /// What is kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (FrameKind, &[u8])> {
        self.chunks.iter().map(|(kind, bytes)| (*kind, bytes.as_slice()))
    }
}

/// One output stream of a process.
pub struct Output {
    /// The reading end, or the terminal.
    pub fd: OwnedFd,
    /// Which frames it becomes.
    pub kind: FrameKind,
    /// Bytes still to be read after the process ended; what its descendants write later is not waited for.
    pub left: Option<u64>,
    /// What it is watched for.
    pub interest: Interest,
}

/// The input of a process.
pub struct Input {
    /// The writing end, or a duplicate of the terminal.
    pub fd: OwnedFd,
    /// Bytes the process has not taken yet.
    pub queue: VecDeque<u8>,
    /// Whether it is closed once the queue is empty.
    pub end: bool,
    /// What it is watched for.
    pub interest: Interest,
}

/// One process with its streams.
pub struct Session {
    /// The process.
    pub pid: Pid,
    /// The command in readable length.
    pub command: String,
    /// The directory it was to start in.
    pub directory: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it goes on when its host is lost.
    pub keep: bool,
    /// Whether it is the main service: its output goes to the log too.
    pub service: bool,
    /// The attached connection.
    pub conn: Option<u64>,
    /// Tells how the exec went, until it did.
    pub starting: Option<OwnedFd>,
    /// What [`Session::starting`] is watched for.
    pub starting_interest: Interest,
    /// Standard output (or the terminal), standard error.
    pub outputs: [Option<Output>; 2],
    /// Standard input.
    pub input: Option<Input>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Output nobody took (pipes), or the last of it (terminal).
    pub kept: Kept,
}

impl Session {
    /// Whether the program runs or ran (its exec succeeded).
    pub fn started(&self) -> bool {
        self.starting.is_none()
    }

    /// Whether the process ended and all its output was read.
    pub fn finished(&self) -> bool {
        self.exit.is_some() && self.outputs.iter().all(Option::is_none)
    }

    /// Keeps output where someone may ask for it later. `taken`: an attached host was sent it.
    pub fn keep_output(&mut self, kind: FrameKind, bytes: &[u8], taken: bool) {
        if self.tty {
            self.kept.push(kind, bytes, KEPT_SCREEN);
        } else if !taken && !self.service {
            self.kept.push(kind, bytes, KEPT_UNSENT);
        }
    }

    /// What is to be shown to a host that attaches now; a terminal's stays for the next one.
    pub fn take_kept(&mut self) -> Vec<(FrameKind, Vec<u8>)> {
        if self.tty {
            return self.kept.iter().map(|(kind, bytes)| (kind, bytes.to_vec())).collect();
        }
        self.kept.bytes = 0;
        std::mem::take(&mut self.kept.chunks).into()
    }

    /// Its line in a list.
    pub fn info(&self, session: u64) -> SessionInfo {
        SessionInfo {
            session,
            pid: self.pid.as_raw_nonzero().get().cast_unsigned(),
            command: self.command.clone(),
            tty: self.tty,
            attached: self.conn.is_some(),
            exit: self.exit,
        }
    }
}

/// The token of an output's events.
pub fn output_token(id: u64, which: usize) -> Token {
    if which == 0 { Token::Out(id) } else { Token::Err(id) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(kept: &Kept) -> Vec<u8> {
        kept.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect()
    }

    #[test]
    fn the_last_bytes_are_kept_exactly() {
        let all: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        for piece in [1, 7, 4096, 65_536, 100_000] {
            let mut kept = Kept::default();
            for bytes in all.chunks(piece) {
                kept.push(FrameKind::Stdout, bytes, 5000);
            }
            assert_eq!(kept.bytes, 5000);
            assert_eq!(text(&kept), all[95_000..], "in pieces of {piece}");
        }
    }

    #[test]
    fn streams_stay_apart() {
        let mut kept = Kept::default();
        for (kind, bytes) in [(FrameKind::Stdout, b"a"), (FrameKind::Stdout, b"b"), (FrameKind::Stderr, b"c")]
        {
            kept.push(kind, bytes, 100);
        }
        let kinds: Vec<_> = kept.iter().map(|(kind, bytes)| (kind, bytes.to_vec())).collect();
        assert_eq!(kinds, [(FrameKind::Stdout, b"ab".to_vec()), (FrameKind::Stderr, b"c".to_vec())]);
    }
}
