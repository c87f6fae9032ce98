//! [`MachineSpec`]: what a machine is, resolved; kept in the machine file.

use serde::{Deserialize, Serialize};

use crate::definition::{CpuProfile, Hooks, NetSpec};
use crate::image::ImageDefaults;

/// Version of [`MachineSpec`]; a reader refuses another one by name.
pub const SPEC_VERSION: u32 = 1;

/// A machine, resolved. Nothing in it names a path of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    pub name: String,
    /// 1 to 16.
    pub vcpus: u32,
    /// Bytes, whole pages.
    pub memory: u64,
    pub cpu: CpuProfile,
    /// Kernel command line beyond what smolvm gives.
    pub command_line: String,
    pub service: Option<Service>,
    pub ready: Option<Ready>,
    pub hooks: Hooks,
    /// Default environment of commands (PATH and the like).
    pub env: Vec<(String, String)>,
    /// The network; none when absent, as in files of before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetSpec>,
    /// What the container image said that the root was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageDefaults>,
}

/// The machine's main process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    /// What asks it to end, 1 to 64; TERM when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<u8>,
}

/// When the service counts as ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub check: ReadyCheck,
    pub timeout_ms: u64,
}

/// One way to find out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadyCheck {
    Port(u16),
    Http(String),
    Socket(String),
    Log(String),
    Exec(Vec<String>),
    AfterMs(u64),
}
