//! What a host may ask. Variants and fields are only ever added at the end (docs/formats/agent-protocol.md).

use serde::{Deserialize, Serialize};

/// The session id of the machine's main service.
pub const SERVICE_SESSION: u64 = 0;

/// A terminal's size in character cells; 0 leaves the kernel's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WinSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The program and its arguments; looked up in the environment's PATH when it holds no `/`.
    pub argv: Vec<String>,
    /// Additional environment. HOME, PATH, HOSTNAME and (with a terminal) TERM are given when absent.
    pub env: Vec<(String, String)>,
    /// The working directory; the root when `None`.
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group`, `uid:gid`; root when `None`.
    pub user: Option<String>,
    /// A terminal of this size as standard input, output and error.
    pub tty: Option<WinSize>,
    /// Whether standard input is fed by this connection; `/dev/null` otherwise.
    pub stdin: bool,
    /// Whether the process goes on when the connection is lost. Otherwise its process group gets SIGHUP. (A
    /// connection lost to a freeze never ends a process.)
    pub keep: bool,
}

/// The machine's main service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// What to run; `keep` is implied, `stdin` means that an attached host may feed it.
    pub exec: ExecSpec,
    /// How much of its output is kept for `Logs`, in bytes (64 KiB to 64 MiB; 0 means 4 MiB).
    pub log_limit: u32,
}

/// A signal for a session's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalSpec {
    /// The signal's number (1 to 64).
    pub signal: u8,
    /// To the whole process group instead of the process.
    pub group: bool,
}

/// Which kept output to send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsSpec {
    /// Go on with new records until the host closes the connection or the service has ended.
    pub follow: bool,
    /// Only the last so many lines of what is kept.
    pub tail: Option<u64>,
    /// Only records at or after this time (ns since the epoch).
    pub since_ns: Option<u64>,
}

/// A transport protocol in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// A byte stream; after the reply the connection carries raw bytes both ways, with half close.
    Tcp,
    /// Datagrams; each is one data frame.
    Udp,
}

/// When a machine counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// The command exits with 0.
    Exec(ExecSpec),
    /// A line of the service's output contains `pattern` (or matches it, see docs/formats/agent-protocol.md).
    Log {
        /// The text, or the expression.
        pattern: String,
        /// Whether `pattern` is an expression.
        regex: bool,
    },
    /// A Unix stream socket at this path takes connections.
    Socket(String),
    /// A TCP port of the loopback (127.0.0.1 or ::1) takes connections.
    Port(u16),
    /// A GET of this `http://` address answers with a status from 200 to 399. The host is an address or `localhost`.
    Http(String),
    /// So many milliseconds passed.
    After(u64),
}

/// A readiness check, evaluated in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadySpec {
    /// What to look for.
    pub probe: Probe,
    /// After how many milliseconds to give up with `TimedOut`.
    pub timeout_ms: u64,
    /// Milliseconds between two tries; 0 means the agent's choice.
    pub interval_ms: u32,
    /// Whether the main service's end is a failure (`ServiceExited`) at once.
    pub needs_service: bool,
}

/// Commands run by the agent, outside the user's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookSet {
    /// Each a program with arguments; run in order, as root, with SMOLVM_REASON in the environment.
    pub commands: Vec<Vec<String>>,
    /// How long each may take, in milliseconds; 0 means 10 s.
    pub timeout_ms: u32,
}

/// Bring the machine to rest before its state is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeSpec {
    /// Run first, while everything still runs. A failure stops the freeze.
    pub hooks: HookSet,
    /// How long the tasks may take to stop, in milliseconds; 0 means 10 s.
    pub timeout_ms: u32,
    /// Whether to write dirty file data to the disks.
    pub sync: bool,
}

/// Why a machine runs again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestoreReason {
    /// The one continuation of a frozen machine.
    Resume,
    /// One of several copies.
    Fork,
    /// After a loss of the running state.
    Crash,
}

impl RestoreReason {
    /// The word that hooks are given.
    pub fn word(self) -> &'static str {
        match self {
            RestoreReason::Resume => "resume",
            RestoreReason::Fork => "fork",
            RestoreReason::Crash => "crash",
        }
    }
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A volume (ext4) in this slot: 0 is /dev/vdc. Grown to its disk's size first. An empty one takes over what the
    /// directory holds that it is mounted on, as docker has it.
    Volume(u8),
    /// A folder of the host, or a file: a piece of the shared file system ([`crate::FOLDERS`]).
    Folder {
        /// Its name in that file system's root.
        id: u32,
        /// Whether it is a file.
        file: bool,
    },
}

/// A mount in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// What.
    pub source: MountSource,
    /// An absolute path; made when it is missing.
    pub path: String,
    /// Whether nothing can be written to it. (Of a folder the host sees to that in any case.)
    pub read_only: bool,
}

/// The machine was restored: put right what a restored machine has wrong, then let its processes go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredSpec {
    /// Why it runs again.
    pub reason: RestoreReason,
    /// The host's wall clock at sending, ns since the epoch.
    pub realtime_ns: u64,
    /// At least 32 (better 64) fresh random bytes for the kernel's generator.
    pub seed: Vec<u8>,
    /// The id of this restore, written to /run/smolvm/generation; the value of VMGenID does well.
    pub generation: [u8; 16],
    /// A new host name.
    pub hostname: Option<String>,
    /// A new machine id.
    pub machine_id: Option<[u8; 16]>,
    /// Run before the processes go on. A failure is reported and does not stop the thaw.
    pub hooks: HookSet,
    /// Mounted before the hooks run. After a failure the processes stay frozen: they would write to the wrong place.
    pub mounts: Vec<MountSpec>,
}

/// How a machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// Power off.
    Off,
    /// Restart.
    Reboot,
}

/// The first frame of every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// `Reply::Pong`.
    Ping,
    /// Start a process and stay attached to it.
    Exec(ExecSpec),
    /// Attach to a process that was started earlier; whoever was attached is told `Replaced`.
    Attach {
        /// The session.
        session: u64,
        /// First send what was kept while nobody was attached (a terminal: its last output in any case).
        replay: bool,
    },
    /// `Reply::Sessions`.
    Sessions,
    /// An `Exit` frame when the session's process has ended (at once when it has).
    Wait {
        /// The session.
        session: u64,
    },
    /// Signal a session's process; `Reply::Done`.
    Kill {
        /// The session.
        session: u64,
        /// The signal.
        signal: SignalSpec,
    },
    /// Start the main service; `Started`, then the connection is over.
    Service(ServiceSpec),
    /// The main service's kept output: log frames, then `DataEnd`.
    Logs(LogsSpec),
    /// Connect to a port of the guest's loopback.
    Forward {
        /// The port.
        port: u16,
        /// TCP or UDP.
        transport: Transport,
    },
    /// `Reply::Stat` of a path.
    Stat {
        /// An absolute path in the guest.
        path: String,
        /// Whether a symbolic link at its end is followed.
        follow: bool,
    },
    /// `Reply::Stat`, then a tar stream in data frames, then `DataEnd`.
    CopyOut {
        /// An absolute path in the guest; `DIR/.` means the directory's contents.
        path: String,
        /// Whether a symbolic link at its end is followed.
        follow: bool,
    },
    /// A tar stream in data frames, then `DataEnd`, from the host; `Reply::Done` when unpacked.
    CopyIn {
        /// An existing directory in the guest.
        path: String,
        /// User and group for everything instead of the tar's.
        owner: Option<(u32, u32)>,
    },
    /// What the machine changed on its root: a tar of the overlay's upper directory.
    ExportUpper,
    /// `Reply::Done` when ready, else an error.
    Ready(ReadySpec),
    /// `Reply::Frozen` when everything of the user's stands still.
    Freeze(FreezeSpec),
    /// Undo a freeze in the machine that was frozen; `Reply::Done`.
    Thaw,
    /// `Reply::Restored` when the processes go on.
    Restored(RestoredSpec),
    /// The kernel's log as data frames, then `DataEnd`.
    KernelLog {
        /// Go on with new messages until the host closes the connection.
        follow: bool,
    },
    /// `Reply::Stats`.
    Stats,
    /// Write all dirty file data to the disks; `Reply::Done`.
    Sync,
    /// End the machine: TERM, wait, KILL, sync, power off. `Reply::Done` is sent just before the end.
    Shutdown {
        /// Off or restart.
        power: Power,
        /// How long processes have between TERM and KILL, in milliseconds.
        grace_ms: u32,
    },
    /// Mount volumes, then folders (one may go below a volume), in a machine that booted; `Reply::Done`. What is mounted
    /// already stays.
    Mount(Vec<MountSpec>),
}
