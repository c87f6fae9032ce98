//! `cargo xtask …`: the repository's own chores. Next: `args.rs` (what was said), then one file a chore.

mod args;
mod guest;
mod paths;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    match args::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
