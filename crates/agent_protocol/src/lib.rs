//! The language that a host and the guest's agent speak over a vsock stream.
//!
//! The guest listens on [`AGENT_PORT`]; the host connects once per operation, so that flow control and
//! cancellation are the stream's own. A connection carries one [`Request`], then the frames that belong to it.
//! docs/formats/agent-protocol.md is the description for another implementation.
//!
//! - [`frame`]: type, length, payload; an incremental decoder and blocking helpers
//! - [`request`]: what a host may ask
//! - [`reply`]: what the agent answers
//! - [`log`]: records of a service's output
//! - [`client`]: a blocking host-side client for the simple calls
//!
//! Everything here is pure: no descriptors, no threads, no clock. Next: guest/agent, `agent_protocol::client`.
#![forbid(unsafe_code)]

pub mod client;
pub mod error;
pub mod frame;
pub mod log;
pub mod reply;
pub mod request;

pub use client::{Client, ClientError};
pub use error::{ErrorKind, Failure, ProtocolError};
pub use frame::{Frame, FrameDecoder, FrameKind, MAX_CONTROL, MAX_DATA};
pub use log::{LogRecord, LogStream};
pub use reply::{
    AgentState, Exit, FrozenReport, Listening, Memory, PathKind, PathStat, Pong, ProcessInfo, Reply,
    RestoredReport, SessionInfo, Started, Stats,
};
pub use request::{
    ExecSpec, FreezeSpec, HookSet, LogsSpec, MountSource, MountSpec, Power, Probe, ReadySpec, Request,
    RestoreReason, RestoredSpec, SERVICE_SESSION, ServiceSpec, SignalSpec, Transport, WinSize,
};

/// The version every request is marked with. It changes only when an existing message changes its meaning or
/// layout; new messages are new enum variants at the end, which an older agent refuses by name.
pub const PROTOCOL_VERSION: u8 = 1;

/// By which name the guest mounts the device that carries the host's folders.
pub const FOLDERS: &str = "smolvm";

/// The vsock port on which the guest's agent listens.
pub const AGENT_PORT: u32 = 1024;
