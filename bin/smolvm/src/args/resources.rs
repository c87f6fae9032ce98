//! Words of the verbs that measure.

use std::net::{Ipv4Addr, SocketAddr};

use clap::{Args as ClapArgs, ValueEnum};

use super::EngineArgs;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm stats                        all that run, every second
  smolvm stats --once search          once
  smolvm stats --once --json
  smolvm stats --engine search        what its engine does")]
pub struct Stats {
    /// Machines; all that run when absent
    pub names: Vec<String>,
    /// Once instead of again and again
    #[arg(long, visible_alias = "no-stream")]
    pub once: bool,
    /// Time between two looks
    #[arg(long, value_name = "SPAN", default_value = "1s")]
    pub interval: String,
    /// What the engine counted instead: instructions, translations, TLB misses, exits by kind
    #[arg(long)]
    pub engine: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm events                       of all machines
  smolvm events web search            of these, whether or not they are there yet
  smolvm events --json | jq -r --unbuffered 'select(.event == \"died\").name'

Events: created, started, resumed (from a freeze), frozen, stopped, died, restarted, health, updated, removed.
An end is told when the machine's process is gone. Ctrl-C ends it.")]
pub struct Events {
    /// Machines; all when absent
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm balloon search 256MiB    it keeps 256 MiB, the rest goes back to this host
  smolvm balloon search all       it takes everything back

The guest gives up what it can: free memory, then page cache. It takes memory back by itself before it would end a
program for want of it. `smolvm stats` shows what it gave up.")]
pub struct Balloon {
    /// The machine
    pub name: String,
    /// How much of its memory it keeps, like 256MiB; `all`
    pub keep: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm rightsize search.smolmachine -- /srv/app/selftest
  smolvm rightsize --cpus 4 --memory 2GiB build.smolmachine -- make -j4")]
pub struct Rightsize {
    /// Virtual CPUs while measuring; as defined when absent. More than proposed are worth a try
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory while measuring, like 2GiB; as defined when absent
    #[arg(long)]
    pub memory: Option<String>,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A machine file or a name in the store
    pub file: String,
    /// The command whose run is measured; the service's first half minute when absent
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<String>,
}

// Who looks after a machine, and who is beside it. (A doc comment would be the help's first line of `run`.)
#[derive(Debug, ClapArgs)]
pub struct Keep {
    /// Run a shell line in the guest, after its definition's hooks: before_snapshot=CMD before it is frozen or copied,
    /// after_restore=CMD before its processes go on (SMOLVM_REASON says why: resume, fork or crash)
    #[arg(long, value_name = "WHEN=CMD")]
    pub hooks: Vec<String>,
    /// Start the service (or command) again when it ends: no, on-failure[:N] or always (with -d)
    #[arg(long, value_name = "POLICY", conflicts_with = "rm")]
    pub restart: Option<String>,
    /// A shell line in the guest that succeeds while the service is well; `ps` shows what it found (with -d)
    #[arg(long, value_name = "CMD")]
    pub health_cmd: Option<String>,
    /// Time between two looks
    #[arg(long, value_name = "SPAN", default_value = "30s", requires = "health_cmd")]
    pub health_interval: String,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "N", default_value_t = 3, requires = "health_cmd")]
    pub health_retries: u32,
    /// What becomes of an unhealthy service; killed, its restart policy decides what comes next
    #[arg(long, value_name = "none|kill", value_enum, default_value = "none", requires = "health_cmd")]
    pub health_on_failure: OnFailure,
    /// Join a network of machines: those on it reach each other by name, over TCP
    #[arg(long, value_name = "NAME", value_parser = network)]
    pub network: Vec<String>,
    /// The most of this host's memory that the machine may take, like 600MiB; beyond it the host ends the machine
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<spec::Size>,
    /// The most CPU time that it may take, in CPUs, like 0.5
    #[arg(long, value_name = "CPUS", value_parser = cpus)]
    pub cpu_limit: Option<u32>,
    /// Serve a debugger: gdb's `target remote [IP:]PORT`. Who reaches it governs the guest
    #[arg(long, value_name = "[IP:]PORT", value_parser = debugger)]
    pub gdb: Option<SocketAddr>,
}

fn network(word: &str) -> Result<String, String> {
    match spec::valid_name(word) {
        true => Ok(word.to_owned()),
        false => Err("write a name, like backend".into()),
    }
}

/// Thousandths of a CPU.
fn cpus(word: &str) -> Result<u32, String> {
    let milli = word.parse::<f64>().ok().map(|cpus| (cpus * 1000.0).round());
    match milli.filter(|milli| (10.0..=1_024_000.0).contains(milli)) {
        Some(milli) => Ok(milli as u32),
        None => Err("write a number of CPUs from 0.01 to 1024, like 0.5".into()),
    }
}

/// On loopback unless said otherwise.
fn debugger(word: &str) -> Result<SocketAddr, String> {
    let port = word.strip_prefix(':').unwrap_or(word).parse();
    let here = port.map(|port: u16| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    here.or_else(|_| word.parse()).map_err(|_| "write a port, like 1234, or IP:PORT".into())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnFailure {
    None,
    Kill,
}
