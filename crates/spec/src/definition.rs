//! The Smolfile: what people write (CLI.md). TOML, snake_case, unknown keys refused.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::{Duration, Size};

/// A definition file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smolfile {
    /// Name of the machine; the default name of the file and of instances.
    pub name: Option<String>,
    /// Virtual CPUs, 1 to 16.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory, for example "512MiB".
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// The CPU that the guest sees.
    #[serde(default)]
    pub cpu: CpuProfile,
    /// Where the root file system comes from.
    #[serde(default)]
    pub root: RootDef,
    /// A kernel of one's own; smolvm's when absent.
    pub kernel: Option<KernelDef>,
    /// What to run inside the machine while building.
    #[serde(default)]
    pub build: BuildDef,
    /// The machine's service.
    pub run: Option<RunDef>,
    /// When the service counts as ready.
    pub ready: Option<ReadyDef>,
    /// Points at which to freeze, in order; the last is the default to resume.
    #[serde(default)]
    pub snapshot: Vec<SnapshotDef>,
    /// Commands around freezing and resuming.
    #[serde(default)]
    pub hooks: Hooks,
    /// The network: `true`, or a table with what may be reached. Off when absent.
    pub net: Option<NetDef>,
}

/// `net = true`, or `[net]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum NetDef {
    Switch(bool),
    Table(NetSpec),
}

/// What may be reached. With neither list everything but the host itself; with lists only what they name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Host names: `example.org`, `*.example.org`.
    #[serde(default)]
    pub allow_hosts: Vec<String>,
    /// Ranges of addresses: `203.0.113.0/24`. The host's own and its loopback are opened on the command line only.
    #[serde(default)]
    pub allow_cidrs: Vec<String>,
}

impl NetDef {
    /// What it means; `None`: no network.
    pub fn spec(&self) -> Option<NetSpec> {
        match self {
            NetDef::Switch(false) => None,
            NetDef::Switch(true) => Some(NetSpec::default()),
            NetDef::Table(spec) => Some(spec.clone()),
        }
    }
}

fn one() -> u32 {
    1
}

fn default_memory() -> Size {
    Size(512 << 20)
}

/// The CPU that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CpuProfile {
    /// x86-64-v2, the same on every engine and host.
    #[default]
    Portable,
    /// What this host offers; the file stays on hosts like it.
    Host,
}

/// The root file system: at most one source; none means the built-in machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RootDef {
    /// Debian packages, `name` or `name=version-glob`.
    pub packages: Option<Vec<String>>,
    /// An OCI image: `oci:DIR[:TAG]`, `docker-archive:FILE[:NAME]`, or a reference of a registry.
    pub image: Option<String>,
    /// A directory on the host.
    pub dir: Option<String>,
    /// A tar archive on the host (plain, gzip, xz or zstd).
    pub tar: Option<String>,
    /// Files and directories of the host to put in: host path (relative to the Smolfile) to guest
    /// path.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// A kernel of one's own (docs/guests.md says what it needs).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelDef {
    /// `bzImage` or `vmlinux` for x86-64 on the host, from the Smolfile's directory.
    pub image: String,
    /// The configuration it was built with; when absent, the one inside it (CONFIG_IKCONFIG) or beside it
    /// (`config-RELEASE`, `config`, `.config`).
    pub config: Option<String>,
    /// Words for it, after smolvm's own.
    #[serde(default)]
    pub command_line: String,
}

/// Work inside the machine at build time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildDef {
    /// Shell lines, run in order as root.
    #[serde(default)]
    pub steps: Vec<String>,
}

/// A command: a list is executed as it is, a string by `sh -c`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Command {
    Shell(String),
    Argv(Vec<String>),
}

impl Command {
    /// The argument vector that is executed.
    pub fn argv(&self) -> Vec<String> {
        match self {
            Command::Shell(line) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
            Command::Argv(argv) => argv.clone(),
        }
    }
}

/// The service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunDef {
    pub command: Command,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// Absolute path in the guest; `/` when absent.
    pub workdir: Option<String>,
    /// TCP ports that the service listens on. It opens nothing: `run -P` publishes them.
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// When the service is ready: exactly one check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadyDef {
    /// A TCP port in the guest accepts a connection.
    pub port: Option<u16>,
    /// A URL on the guest's loopback answers with a status from 200 to 399.
    pub http: Option<String>,
    /// A Unix socket in the guest accepts a connection.
    pub socket: Option<String>,
    /// The service's output contains this text.
    pub log: Option<String>,
    /// A command succeeds.
    pub exec: Option<Command>,
    /// So much time has passed.
    pub after: Option<Duration>,
    /// How long to wait; 60 s when absent.
    pub timeout: Option<Duration>,
}

/// A point at which to freeze.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDef {
    pub name: String,
    /// After this build step, counted from 1.
    pub after_step: Option<u32>,
    /// At this point of the machine's life.
    pub at: Option<SnapshotPoint>,
}

/// Named points of a machine's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotPoint {
    /// The service is ready.
    Ready,
}

/// Commands in the guest around freezing and resuming, each a path or a shell line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    #[serde(default)]
    pub before_snapshot: Vec<String>,
    /// Told why in SMOLVM_REASON: resume, fork or crash.
    #[serde(default)]
    pub after_restore: Vec<String>,
}
