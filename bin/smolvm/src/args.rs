//! What was said: the words of the command line and nothing of their meaning.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, Parser, Subcommand};

mod copies;
mod data;
mod files;
mod plain;
mod renew;
mod resources;
mod shell;
pub use copies::{Diff, Fork, Snapshot};
pub use data::{Delta, DeltaVerb, Update, Volume, VolumeVerb};
pub use files::{Doctor, Import, Prune, System, SystemVerb};
pub use renew::{Outdated, Rebuild};
pub use resources::{Balloon, Events, Keep, OnFailure, Rightsize, Stats};
pub use shell::Shell;

/// Run a machine from one file: built once, frozen when ready, resumed in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "smolvm", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
    #[command(flatten)]
    pub global: Global,
}

const EXAMPLES: &str = "Examples:
  smolvm demo                                build, freeze and resume a real service; see the figures
  smolvm run -- uname -a                     the built-in machine
  smolvm init && smolvm build                a machine of your own from a Smolfile
  smolvm run search.smolmachine              resume it and follow its output
  smolvm run -d -p 8000:8000 search.smolmachine
  smolvm exec -it search sh";

/// Said anywhere.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Global {
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more of what happens
    #[arg(long, global = true)]
    pub verbose: bool,
}

/// The flags of a verb are defined when it is the one that was said: those of all others take a third of a
/// millisecond of each start.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// See it work: build and freeze a real service, resume it, print what was measured here
    Demo(Demo),
    /// Write a first Smolfile
    Init(Init),
    /// Validate a Smolfile
    Check(Check),
    /// Build a machine file from a Smolfile
    Build(Build),
    /// Resume (or boot) a machine and execute
    Run(Box<Run>),
    /// Execute a command in a running machine
    Exec(Exec),
    /// Open a shell in a running machine
    Shell(Shell),
    /// Join the output and input of a running command or service
    Attach(Attach),
    /// List machines
    Ps(Ps),
    /// Show what machines use: CPU, memory, disk, network
    Stats(Stats),
    /// Print what happens to machines from now on, a line each
    Events(Events),
    /// Take memory from a running machine, or give it back
    Balloon(Balloon),
    /// Run a command in a machine, measure it, propose cpus, memory and disk for its Smolfile
    Rightsize(Box<Rightsize>),
    /// Print what the service, or the command in its place, said
    Logs(Logs),
    /// Copy files between host and machine
    Cp(Cp),
    /// Wait until machines end; print their exit codes
    Wait(Names),
    /// Stop a machine and keep its memory: the same processes go on at `start`
    Freeze(Names),
    /// Start a frozen or stopped machine
    Start(Names),
    /// Shut a machine down and keep its disk
    Stop(Stop),
    /// End a machine at once, keeping nothing of this run
    Kill(Names),
    /// Remove machines
    Rm(Rm),
    /// Write a running machine into a file; it goes on
    Snapshot(Snapshot),
    /// Make running copies of a running machine; it goes on
    Fork(Fork),
    /// Say what a machine changed: files, processes, ports, memory, definition
    Diff(Diff),
    /// Show what a machine or file is
    Inspect(Inspect),
    /// Check every byte of a machine file
    Verify(Files),
    /// Put a machine file into the store under a name
    Import(Import),
    /// List machine files in the store
    Images,
    /// Remove what nothing uses: from the store, and dead machines that nobody named
    Prune(Prune),
    /// Say what takes room, and what needs what
    System(System),
    /// Make, list, copy and remove volumes: data that outlives machines
    Volume(Volume),
    /// Make one machine file of another and what changed
    Delta(Delta),
    /// Move a machine to a new version of its machine file; its volumes stay
    Update(Update),
    /// Say what there are newer packages, images or kernels for
    Outdated(Outdated),
    /// Build machine files again, of newer packages and this smolvm's kernel
    Rebuild(Rebuild),
    /// Look at a machine's network
    Net(Net),
    /// Say what this host can do and whether all that is kept is whole; repair it
    Doctor(Doctor),
    /// Print versions
    Version,
    /// Print shell completions
    Completions(Completions),
    /// Print the manual page
    Man,
    /// The VMM of a detached machine (started by `run -d` and `start`)
    #[command(name = "__vmm", hide = true)]
    Vmm(VmmArgs),
    /// The VMMs of copies made at once (started by `fork`)
    #[command(name = "__copies", hide = true)]
    Copies { names: Vec<String> },
}

impl Verb {
    /// Whether a signal half-way needs something undone. (`run` knows best itself from when on.)
    pub fn makes_something(&self) -> bool {
        use Verb::{Build, Delta, Demo, Fork, Import, Rebuild, Rightsize, Snapshot};
        let files = matches!(self, Build(_) | Rebuild(_) | Snapshot(_) | Import(_) | Delta(_));
        files || matches!(self, Demo(_) | Fork(_) | Rightsize(_))
    }
}

// How a machine runs. (A doc comment would be the help's first line of every verb that takes these.)
#[derive(Debug, Clone, ClapArgs)]
pub struct EngineArgs {
    /// What executes the guest: auto, soft or kvm
    #[arg(long, value_name = "ENGINE", default_value = "auto", env = "SMOLVM_ENGINE")]
    pub engine: String,
    /// Use KVM although it does not govern the CPU template on this host
    #[arg(long, hide = true)]
    pub force_template: bool,
    /// Boot with a TSC of this frequency, as on another host (for tests)
    #[arg(long, hide = true, value_name = "KHZ", value_parser = clap::value_parser!(u32).range(100_000..=10_000_000))]
    pub tsc_khz: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub struct VmmArgs {
    /// The instance
    pub name: String,
}

#[derive(Debug, ClapArgs)]
pub struct Demo {
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Build the demo machine anew
    #[arg(long)]
    pub rebuild: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Init {
    /// Directory for the Smolfile
    #[arg(default_value = ".")]
    pub dir: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub struct Check {
    /// The definition
    #[arg(default_value = "Smolfile")]
    pub file: PathBuf,
    /// Print the JSON Schema of a Smolfile instead
    #[arg(long)]
    pub schema: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm build                       from ./Smolfile to ./NAME.smolmachine
  smolvm build -f search/Smolfile -o search.smolmachine")]
pub struct Build {
    /// The definition
    #[arg(short, long, default_value = "Smolfile")]
    pub file: PathBuf,
    /// The machine file to write; NAME.smolmachine when absent
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Resolve packages anew instead of following Smolfile.lock
    #[arg(long)]
    pub update: bool,
    /// Configure packages and run every step, whatever earlier builds did
    #[arg(long)]
    pub no_cache: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

// What `run` and `exec` share about a command. (Not a doc comment, as above.)
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct Process {
    /// Set an environment variable: KEY=VALUE, or KEY to pass the host's
    #[arg(short, long = "env", value_name = "K=V")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User in the guest: name, uid, name:group or uid:gid
    #[arg(short, long)]
    pub user: Option<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
}

/// What a run that is the same each time cannot have: input that differs, a life after it, another start.
const NOT_REPEATABLE: [&str; 11] = [
    "detach",
    "name",
    "cold",
    "publish",
    "publish_all",
    "net",
    "allow_host",
    "allow_cidr",
    "dns",
    "interactive",
    "tty",
];

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm run -- uname -a                          in the built-in machine
  smolvm run -it                                  a shell in it
  smolvm run search.smolmachine                   resume, follow the service's output
  smolvm run search.smolmachine -- ls /srv        a command beside the frozen service
  smolvm run -v .:/work -w /work -- ls            this folder in it (:ro for reading only)
  smolvm run -d --name s -p 8000:8000 search.smolmachine")]
pub struct Run {
    #[command(flatten)]
    pub process: Process,
    /// Go to the background and print the name
    #[arg(short, long)]
    pub detach: bool,
    /// Name the instance and keep it
    #[arg(long)]
    pub name: Option<String>,
    /// Discard the instance at its end (the default in the foreground without a name)
    #[arg(long)]
    pub rm: bool,
    /// Publish a port: [IP:]HOST:GUEST[/udp] (UDP needs the network)
    #[arg(short, long, value_name = "[IP:]HOST:GUEST")]
    pub publish: Vec<String>,
    /// Publish every TCP port that the machine says it listens on, each as a free port of loopback
    #[arg(short = 'P', long)]
    pub publish_all: bool,
    /// Mount a volume by its name (see `smolvm volume`) or a folder of this host: SRC:DST[:ro]
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]")]
    pub mounts: Vec<String>,
    /// The guest's host name; without, the one it was built with
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Give it a network, or with --net=off take it away; as its definition says when absent
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on", value_parser = on_off)]
    pub net: Option<bool>,
    /// Let it reach this host name (or *.NAME), and nothing that is on no list
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Let it reach these addresses, even this host's own, and nothing that is on no list
    #[arg(long, value_name = "CIDR")]
    pub allow_cidr: Vec<String>,
    /// Resolve names there instead of by this host's resolvers
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<String>,
    /// Boot the base instead of resuming
    #[arg(long)]
    pub cold: bool,
    /// Resume this snapshot of the file; its last one when absent (`inspect` lists them)
    #[arg(long, value_name = "NAME", conflicts_with = "cold")]
    pub snapshot: Option<String>,
    /// Virtual CPUs (with --cold)
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory (with --cold), like 512MiB
    #[arg(long)]
    pub memory: Option<String>,
    /// Label: KEY=VALUE
    #[arg(long, value_name = "K=V")]
    pub label: Vec<String>,
    /// End it after this time, like 30s, with exit code 124
    #[arg(long)]
    pub timeout: Option<String>,
    /// Resume so that the run is the same each time, to the bit: one thread, time counted in instructions, fixed
    /// seeds and date, no input but the command line. Prints the state's digest at the end
    #[arg(long, conflicts_with_all = NOT_REPEATABLE)]
    pub deterministic: bool,
    /// Run it deterministically twice at once, translated and interpreted, and compare the CPUs' states all the time:
    /// for finding mistakes of the translator. As slow as the interpreter
    #[arg(long, conflicts_with_all = NOT_REPEATABLE)]
    pub lockstep: bool,
    /// The interpreter's half of --lockstep: states go to the socket that is standard input
    #[arg(long, hide = true, conflicts_with = "lockstep")]
    pub states_to_stdin: bool,
    #[command(flatten)]
    pub keep: Keep,
    #[command(flatten)]
    pub engine: EngineArgs,
    /// A machine file, a name in the store, a container image (debian:12, oci:DIR, docker-archive:FILE),
    /// a root (dir:PATH, - for a tar on standard input); nothing: the built-in machine. Then the command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WHAT [CMD [ARG…]]")]
    pub words: Vec<String>,
    /// Whether the words began with `--`, which clap swallows: there is no WHAT then. See [`parse`].
    #[arg(skip)]
    pub no_what: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm exec search ls /srv
  smolvm exec -it search sh
  smolvm exec -d search sh -c 'tail -f /var/log/app >/tmp/seen'")]
pub struct Exec {
    #[command(flatten)]
    pub process: Process,
    /// Let it run in the background: print nothing, wait for nothing. `attach` joins it
    #[arg(short, long)]
    pub detach: bool,
    /// The machine
    pub name: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Attach {
    /// The machine
    pub name: String,
    /// A session other than the service (see `inspect`)
    #[arg(long)]
    pub session: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Logs {
    /// The machine
    pub name: String,
    /// Go on with new output
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    pub tail: Option<u64>,
    /// Only output of the last time span, like 10m
    #[arg(long, value_name = "SPAN")]
    pub since: Option<String>,
    /// With timestamps
    #[arg(short, long)]
    pub timestamps: bool,
    /// The guest kernel's log instead
    #[arg(long)]
    pub kernel: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm cp search:/srv/app/data.json .
  smolvm cp ./app search:/srv/
  smolvm cp search:/var/log - | tar t          (- is a tar)")]
pub struct Cp {
    /// NAME:PATH, a host path, or - (a tar)
    pub from: String,
    /// NAME:PATH, a host path, or - (a tar)
    pub to: String,
    /// Follow a symbolic link at the end of the source's path
    #[arg(short = 'L', long)]
    pub follow_link: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Names {
    /// Machines
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Stop {
    /// Machines
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Time between TERM and KILL
    #[arg(short, long, default_value = "10s")]
    pub time: String,
    /// Keep memory, too: the same as `freeze`
    #[arg(long)]
    pub freeze: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Rm {
    /// Machines
    #[arg(required = true)]
    pub names: Vec<String>,
    /// End them first when they run
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// A machine's name, a machine file, or a name in the store
    pub what: String,
}

#[derive(Debug, ClapArgs)]
pub struct Files {
    /// Machine files, or names in the store
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct Net {
    #[command(subcommand)]
    pub verb: NetVerb,
}

#[derive(Debug, Subcommand)]
pub enum NetVerb {
    /// List what a machine asked for and was refused
    Log {
        /// The machine
        name: String,
    },
}

fn on_off(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

#[derive(Debug, ClapArgs)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    pub shell: clap_complete::Shell,
}

/// Reads the command line; help and usage errors are printed here.
///
/// # Errors
/// The exit code: 0 after help, 125 after a usage error, as smolvm's own failures have.
pub fn parse() -> Result<Args, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    if let Some(plain) = plain::parse(&words) {
        return Ok(plain);
    }
    let mut args = Args::try_parse_from(&words).map_err(|e| {
        let _ = e.print();
        if e.use_stderr() { ExitCode::from(125) } else { ExitCode::SUCCESS }
    })?;
    if let Verb::Run(run) = &mut args.verb {
        run.no_what = dashes_before(&words, run.words.len());
    }
    Ok(args)
}

/// Whether `--` stands just before the last `count` words.
fn dashes_before(words: &[OsString], count: usize) -> bool {
    let last = words.len().checked_sub(count + 1);
    last.and_then(|at| words.get(at)).is_some_and(|word| word == "--")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn each_verb_says_what_it_does_itself() {
        let mut args = Args::command();
        args.build();
        // `help` is clap's own and comes with building.
        let ours = |verb: &&clap::Command| !verb.is_hide_set() && verb.get_name() != "help";
        for verb in args.get_subcommands().filter(ours) {
            let said = verb.get_about().map(ToString::to_string).unwrap_or_default();
            let listed = Args::command()
                .find_subcommand(verb.get_name())
                .map(|v| v.get_about().map(ToString::to_string));
            assert_eq!(Some(Some(said)), listed, "{}", verb.get_name());
        }
    }

    #[test]
    fn dashes_first_mean_the_built_in_machine() {
        for (line, no_what) in [
            ("smolvm run -- uname -a", true),
            ("smolvm run -it -- sh", true),
            ("smolvm run a.smolmachine", false),
            ("smolvm run a.smolmachine -- ls", false),
            ("smolvm run a.smolmachine ls -- x", false),
            ("smolvm run -- ls -- x", true),
            ("smolvm run", false),
        ] {
            let words = words(line);
            let Ok(Verb::Run(run)) = Args::try_parse_from(&words).map(|a| a.verb) else { panic!("{line}") };
            assert_eq!(dashes_before(&words, run.words.len()), no_what, "{line}");
        }
    }
}
