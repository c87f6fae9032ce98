//! What the agent answers. Variants and fields are only ever added at the end.

use serde::{Deserialize, Serialize};

/// What the agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentState {
    /// Processes run.
    Running,
    /// A freeze is under way.
    Freezing,
    /// The user's processes stand still.
    Frozen,
    /// The machine is going down.
    ShuttingDown,
}

/// The answer to a ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The agent's version.
    pub version: String,
    /// The kernel's boot id, as it prints it; empty when it has none.
    pub boot_id: String,
    /// What the agent is doing.
    pub state: AgentState,
    /// Nanoseconds since the guest's kernel started, by CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Nanoseconds since the epoch by the guest's clock.
    pub realtime_ns: u64,
    /// Whether the main service runs.
    pub service: bool,
    /// The generation id of the last restore; zero before the first.
    pub generation: [u8; 16],
}

/// A process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Names the process for `Attach`, `Wait` and `Kill`.
    pub session: u64,
    /// Its process id in the guest.
    pub pid: u32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
}

impl Exit {
    /// The shell's number for it: the code, or 128 + the signal.
    pub fn code(self) -> u8 {
        match self {
            Exit::Code(code) => code,
            Exit::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// One session in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The session's id; [`crate::SERVICE_SESSION`] is the main service.
    pub session: u64,
    /// The process id in the guest.
    pub pid: u32,
    /// The command, cut to a readable length.
    pub command: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether a host is attached.
    pub attached: bool,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// The last component of the path; empty for the root and for `DIR/.`.
    pub name: String,
    /// Its type.
    pub kind: PathKind,
    /// Its permission bits.
    pub mode: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Modification time in seconds since the epoch.
    pub mtime: i64,
    /// What a symbolic link says.
    pub link_target: Option<String>,
}

/// A freeze that succeeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenReport {
    /// Microseconds spent in hooks.
    pub hooks_us: u64,
    /// Microseconds spent writing file data out.
    pub sync_us: u64,
    /// Microseconds until every task stood still.
    pub freeze_us: u64,
}

/// A restore that was put right.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredReport {
    /// Microseconds the whole took, hooks included.
    pub total_us: u64,
    /// TCP connections that were reset because their peer is gone.
    pub sockets_closed: u32,
    /// What could not be done, one line each; empty when all went well.
    pub notes: Vec<String>,
}

/// Memory as /proc/meminfo tells it, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// Free or quickly freed.
    pub available: u64,
    /// Page cache and buffers.
    pub cached: u64,
    /// File data not yet on a disk.
    pub dirty: u64,
    /// Anonymous pages.
    pub anonymous: u64,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its name as the kernel has it.
    pub name: String,
    /// Its state letter.
    pub state: char,
    /// Resident memory in KiB.
    pub resident: u64,
    /// CPU time used, in milliseconds.
    pub cpu_ms: u64,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// `tcp` or `udp`.
    pub transport: String,
    /// The address it is bound to.
    pub address: String,
    /// The port.
    pub port: u16,
}

/// A look at the running machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Milliseconds since boot.
    pub uptime_ms: u64,
    /// CPU time in milliseconds that all CPUs were not idle.
    pub busy_ms: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Memory.
    pub memory: Memory,
    /// The user's processes, at most 1024.
    pub processes: Vec<ProcessInfo>,
    /// Sockets that take connections or datagrams, at most 1024.
    pub listening: Vec<Listening>,
    /// Space of the root in KiB: all, free.
    pub disk: (u64, u64),
}

/// Answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It was done.
    Done,
    /// To `Ping`.
    Pong(Pong),
    /// To `Sessions`.
    Sessions(Vec<SessionInfo>),
    /// To `Stat` and `CopyOut`.
    Stat(PathStat),
    /// To `Freeze`.
    Frozen(FrozenReport),
    /// To `Restored`.
    Restored(RestoredReport),
    /// To `Stats`.
    Stats(Stats),
}
