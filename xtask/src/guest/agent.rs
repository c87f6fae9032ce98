//! The agent: `guest/agent`, PID 1 of every machine, as one static program of x86-64-v2 at most.
//!
//! Cargo decides whether there is anything to do. Fixed prefixes stand in for this checkout's path and
//! the registry's, so that two checkouts make the same bytes.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build_info::BuildInfo;
use super::{cache, say};
use crate::paths::Paths;
use crate::run;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The largest that the agent may be, in bytes: it is copied into memory at each cold boot.
const LIMIT: usize = 5 << 19; // 2.5 MiB

/// ELF program header type of a dynamic loader's name.
const PT_INTERP: u32 = 3;

/// Builds the agent and returns its bytes, checked.
pub fn build(paths: &Paths, info: &mut BuildInfo) -> Result<Vec<u8>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let flags = [
        "-Ctarget-cpu=x86-64-v2".to_string(),
        "-Ctarget-feature=+crt-static".to_string(),
        "-Crelocation-model=static".to_string(),
        format!("--remap-path-prefix={}=/smolvm", paths.root.display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
    ];
    // A directory of its own: other flags than the host's programs, and no lock shared with a build
    // that may be running this chore.
    let target_dir = paths.target.join("agent");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "agent", "--profile", "agent", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .current_dir(&paths.root);
    // What `cargo run` set for this program is not the agent's.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    run::status(&mut command).context("building the agent (guest/agent)")?;
    let path = target_dir.join(TARGET).join("agent/agent");
    let agent = cache::read(&path)?;
    check(&agent).with_context(|| format!("{} cannot be a guest's PID 1", path.display()))?;
    say(&format!("agent: {} KiB", agent.len() >> 10));
    cache::publish(&agent, &paths.guest.join("agent"))?;
    info.set_part("agent", &agent);
    Ok(agent)
}

/// Static (there is no loader in the initramfs), a fixed-address executable, and small.
fn check(agent: &[u8]) -> Result<()> {
    ensure!(agent.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit ELF program");
    let field = |at: usize, size: usize| {
        let bytes = agent.get(at..at + size).context("the ELF header is cut short")?;
        let mut word = [0; 8];
        word[..size].copy_from_slice(bytes);
        anyhow::Ok(usize::try_from(u64::from_le_bytes(word))?)
    };
    ensure!(field(16, 2)? == 2, "it is relocatable: `-C relocation-model=static` did not work");
    let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    for index in 0..count {
        let kind = field(table + index * size, 4)?;
        ensure!(kind != PT_INTERP as usize, "it asks for a dynamic loader: `+crt-static` did not work");
    }
    ensure!(agent.len() <= LIMIT, "it has {} bytes; the limit is {LIMIT}", agent.len());
    Ok(())
}
