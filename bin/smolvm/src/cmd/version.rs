//! `version`, `completions`, `man`.

use anyhow::Result;
use clap::CommandFactory;
use serde_json::{Value, json};

use crate::args::{Args, Completions, Global};
use crate::ui;
use crate::ui::say::{self, say};

/// What this binary is and holds.
pub fn versions() -> Value {
    let guest: serde_json::Map<String, Value> =
        assets::build_info().iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": assets::kernel_release(),
        "format": artifact::FORMAT_VERSION,
        "guest": guest,
    })
}

/// The same in one line.
pub fn line() -> String {
    let (version, kernel) = (env!("CARGO_PKG_VERSION"), assets::kernel_release());
    format!("{version}, guest kernel {kernel}, machine file format {}", artifact::FORMAT_VERSION)
}

pub fn version(global: &Global) -> Result<u8> {
    if global.json {
        ui::json(&versions())?;
    } else {
        say!("smolvm {}", line());
    }
    Ok(0)
}

pub fn completions(completions: &Completions) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut Args::command(), "smolvm", &mut script);
    say::bytes(&script);
    Ok(0)
}

pub fn man() -> Result<u8> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut page)?;
    say::bytes(&page);
    Ok(0)
}
