//! `cargo xtask setup`: a fresh Debian with Rust and apt, made ready to build smolvm.

use anyhow::{Result, ensure};

use crate::guest;
use crate::paths::Paths;
use crate::run;

/// Checks what only the user can provide, installs or unpacks the rest, and builds the guest.
pub fn run(paths: &Paths) -> Result<()> {
    for (program, hint) in [
        ("apt-get", "smolvm is built on Debian 12 or later"),
        ("dpkg-deb", "smolvm is built on Debian 12 or later"),
        ("cc", "run `apt-get install build-essential` as root"),
    ] {
        ensure!(run::find_program(program).is_some(), "{program} is missing: {hint}");
    }
    guest::build(paths, &guest::Options::default())?;
    eprintln!("setup: done. Next: cargo build --release -p smolvm && target/release/smolvm run -- uname -a");
    Ok(())
}

/// Everything from a fresh checkout to the first machine.
pub fn demo(paths: &Paths) -> Result<()> {
    run(paths)?;
    let mut command = run::cargo(paths);
    run::status(command.args(["run", "--release", "--package", "smolvm", "--", "demo"]))
}
