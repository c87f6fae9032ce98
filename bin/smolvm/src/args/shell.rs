//! Words of `shell`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  smolvm shell web                                   the guest's own shell
  smolvm shell --rescue web                          a shell of ours, in a guest that has none; its files are in /guest
  smolvm shell --rescue --tools tools.tar web -- strace -f -p 1")]
pub struct Shell {
    /// The machine
    pub name: String,
    /// User in the guest
    #[arg(short, long)]
    pub user: Option<String>,
    /// Bring a toolbox (busybox) beside the guest's processes; its disk stays as it is
    #[arg(long)]
    pub rescue: bool,
    /// More tools for it: a directory or tar of a root that has them
    #[arg(long, value_name = "DIR|TAR", requires = "rescue")]
    pub tools: Option<PathBuf>,
    /// A command for the toolbox instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, requires = "rescue", value_name = "CMD")]
    pub command: Vec<String>,
}
