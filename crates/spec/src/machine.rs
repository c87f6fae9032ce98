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
    /// TCP ports that it says it listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
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

impl MachineSpec {
    /// TCP ports that the machine says it listens on: the definition's `ports`, what the service is ready by,
    /// what the image exposes. Ascending, each once. What they mean for a host is for its user to say.
    pub fn tcp_ports(&self) -> Vec<u16> {
        let ready = self.ready.as_ref().and_then(|ready| ready.check.tcp_port());
        let own = self.service.iter().flat_map(|service| service.ports.iter().copied());
        let image = self.image.iter().flat_map(ImageDefaults::tcp_ports);
        let mut ports: Vec<u16> = own.chain(ready).chain(image).filter(|port| *port > 0).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

impl ReadyCheck {
    /// The TCP port that the check asks, 80 where a URL names none.
    fn tcp_port(&self) -> Option<u16> {
        match self {
            ReadyCheck::Port(port) => Some(*port),
            ReadyCheck::Http(url) => {
                let host = url.strip_prefix("http://")?.split(['/', '?', '#']).next()?;
                match host.rsplit_once(':') {
                    Some((_, port)) if !port.ends_with(']') => port.parse().ok(),
                    _ => Some(80),
                }
            }
            _ => None,
        }
    }
}
