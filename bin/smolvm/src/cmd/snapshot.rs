//! `snapshot`: a running machine into a file of its own; it goes on.

use anyhow::{Context, Result};
use instance::Instance;
use instance::control::{Client, Request};

use crate::args::{Global, Snapshot};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{say, tell};

pub fn snapshot(snapshot: &Snapshot, global: &Global, home: &Home) -> Result<u8> {
    let instance = Instance::open(&home.dirs, &snapshot.name)?;
    let path = std::path::absolute(&snapshot.output)
        .with_context(|| format!("finding {}", snapshot.output.display()))?;
    let path = path.to_str().context("the output's path is not UTF-8")?.to_owned();
    let report =
        Client::new(&instance)?.call(&Request::Snapshot { path, incremental: snapshot.incremental })?;
    if global.json {
        ui::json(&report)?;
    } else if !global.quiet {
        let number = |key: &str| report.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let size = ui::bytes(number("file_bytes"));
        let ms = |key: &str| number(key) as f64 / 1000.0;
        say!("{}", snapshot.output.display());
        tell!(
            "smolvm: {size}; CPUs stood still for {:.1} ms, processes for {:.1} ms; hooks {:.1} ms, sync {:.1} ms",
            ms("pause_us"),
            ms("stopped_us"),
            ms("hooks_us"),
            ms("sync_us")
        );
    }
    Ok(0)
}
