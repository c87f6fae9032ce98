//! smolvm: one file that is a running machine.
//!
//! Way (d) through the house: `args.rs` (what was said) → `resolve.rs` (what it means) →
//! `cmd/<verb>.rs` → `machine/builder.rs`.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod cmd;
mod interrupt;
mod launch;
mod mounts;
mod resolve;
mod trace;
mod ui;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    trace::point("main");
    host::share_one_heap();
    let args = match args::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    let code = cmd::run(args).map_or_else(|error| ui::fail(&error), ExitCode::from);
    trace::print();
    code
}
