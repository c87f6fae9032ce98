//! Words of the verbs that keep machines new.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::EngineArgs;

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Takes packages as apt's lists have them now (`apt-get update` renews these), the image that a name stands for now, \
and this smolvm's kernel and agent. Volumes are no part of a machine file; a machine is moved over by `update`, or here by --machines.
Examples:
  smolvm outdated && echo nothing to do
  smolvm rebuild search                            in the store
  smolvm rebuild --sources search/ search.smolmachine
  smolvm rebuild --machines search                 and the machines that came from it"
)]
pub struct Rebuild {
    /// Machine files or names in the store; each is replaced when the new one is whole
    #[arg(required = true)]
    pub files: Vec<String>,
    /// Write the new machine file there, and leave the old one
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Where the host's files are that the definition names: the directory that its Smolfile is in
    #[arg(long, value_name = "DIR")]
    pub sources: Option<PathBuf>,
    /// Move the machines that came from the old file to the new one
    #[arg(long)]
    pub machines: bool,
    /// Configure packages and run every step, whatever earlier builds did
    #[arg(long)]
    pub no_cache: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Exit code 1 when something is outdated, 0 when nothing is, 125 when that could not be found out.
Examples:
  smolvm outdated                    every named machine file and every machine
  smolvm outdated search.smolmachine
  smolvm outdated -q | xargs -r smolvm rebuild      (of files)"
)]
pub struct Outdated {
    /// Machines, machine files, names in the store; all when absent
    pub what: Vec<String>,
}
