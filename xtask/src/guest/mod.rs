//! `cargo xtask guest`: everything that the binary embeds, in `target/guest/`.
//!
//! Each part is made once for each set of inputs and kept in the cache (`cache.rs`); the agent is ours
//! and is left to cargo. `build-info.toml` beside the parts says what they were made from.
//!
//! Next: `kernel.rs`, `busybox.rs`, `blank.rs`, `agent.rs`, `initramfs.rs`, in the order of `build`.

mod agent;
mod blank;
mod build_info;
mod busybox;
mod cache;
mod config;
mod debian;
mod elf;
mod initramfs;
mod kernel;
mod tools;

use std::fs;

use anyhow::{Context, Result};
use clap::Args;

use crate::paths::Paths;
use build_info::BuildInfo;

/// What `cargo xtask guest` can be told.
#[derive(Args, Default)]
pub struct Options {
    /// Build the kernel anew even if one from the same inputs is cached
    #[arg(long)]
    pub rebuild: bool,
    /// Keep the kernel's source and object files (1 GiB) in the cache, for debugging
    #[arg(long)]
    pub keep_build: bool,
    /// Parallel jobs for the kernel build [default: the number of CPUs]
    #[arg(short, long)]
    pub jobs: Option<usize>,
}

/// Makes every part that is missing or out of date and puts copies in `paths.guest`.
pub fn build(paths: &Paths, options: &Options) -> Result<()> {
    for dir in [&paths.cache, &paths.guest] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    let mut info = BuildInfo::default();
    kernel::build(paths, options, &mut info)?;
    busybox::build(paths, &mut info)?;
    blank::build(paths, &mut info)?;
    let agent = agent::build(paths, &mut info)?;
    initramfs::build(paths, &agent, &mut info)?;
    info.write(&paths.guest.join("build-info.toml"))?;
    say(&format!("ready in {}", paths.guest.display()));
    Ok(())
}

/// One line of progress.
fn say(text: &str) {
    eprintln!("guest: {text}");
}
