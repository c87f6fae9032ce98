//! `version`, `completions`, `man`.

use anyhow::Result;
use clap::CommandFactory;
use serde_json::json;

use crate::args::{Args, Completions, Global};
use crate::ui;

pub fn version(global: &Global) -> Result<u8> {
    let (version, kernel) = (env!("CARGO_PKG_VERSION"), assets::kernel_release());
    if global.json {
        let guest: serde_json::Map<String, serde_json::Value> =
            assets::build_info().iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        ui::json(
            &json!({ "version": version, "kernel": kernel, "format": artifact::FORMAT_VERSION, "guest": guest }),
        )?;
    } else {
        println!("smolvm {version}, guest kernel {kernel}, machine file format {}", artifact::FORMAT_VERSION);
    }
    Ok(0)
}

pub fn completions(completions: &Completions) -> Result<u8> {
    clap_complete::generate(completions.shell, &mut Args::command(), "smolvm", &mut std::io::stdout());
    Ok(0)
}

pub fn man() -> Result<u8> {
    clap_mangen::Man::new(Args::command()).render(&mut std::io::stdout())?;
    Ok(0)
}
