//! How other processes of the same user talk to a machine's VMM: one request and one answer a
//! connection, each a line of JSON; `Connect` also passes a descriptor.

mod client;
mod passing;
mod server;

use serde::{Deserialize, Serialize};

pub use client::Client;
pub use server::{Asker, Handler, Listening, Server, listen};

/// Longest request or answer, in bytes.
const LINE_MAX: u64 = 64 * 1024;

/// What can be asked of a VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Request {
    /// Are you there?
    Ping,
    /// A stream to this vsock port of the guest; the answer carries its descriptor.
    Connect { port: u32 },
    /// Shut the guest down, save its disk, end. `grace_ms`: between TERM and KILL.
    Stop { grace_ms: u32 },
    /// End at once, saving nothing.
    Kill,
    /// Freeze into the instance's directory and end.
    Freeze,
    /// Write a machine file and go on. An absolute path.
    Snapshot {
        path: String,
        /// Only what changed since the machine file that the instance was resumed from.
        #[serde(default)]
        incremental: bool,
    },
    /// Write what copies of the machine start from, and go on. An absolute path on the file system
    /// of the instances.
    Fork {
        path: String,
        /// Where to write what each of its volumes holds at that instant: the volume's name, and the absolute path of a
        /// file to be made.
        #[serde(default)]
        volumes: Vec<(String, String)>,
    },
    /// What its network refused and carried.
    Network,
    /// How much of memory and disk changed.
    Drift,
    /// What it costs this host ([`machine::Usage`]).
    Usage,
    /// Ask the guest to make do with so many bytes of its memory ([`machine::Machine::balloon`]).
    Balloon { keep: u64 },
    /// What its engine counted ([`machine::EngineFigures`]).
    Engine,
}

/// The VMM's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub enum Answer {
    Done { report: serde_json::Value },
    Failed { text: String },
}
