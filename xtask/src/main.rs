//! `cargo xtask …`: the repository's own chores. Next: `args.rs` (what was said), then one file a chore.

mod args;
mod ci;
mod dist;
mod guest;
mod paths;
mod run;
mod setup;
mod tidy;

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
