//! `snapshot`: a running machine into a file of its own, and it goes on; a frozen one as it stands.

use std::path::Path;

use anyhow::{Context, Result, bail};
use artifact::MachineFile;
use instance::control::{Client, Request};
use instance::{Instance, Phase};
use serde_json::json;

use crate::args::{Global, Snapshot};
use crate::cmd::vmm;
use crate::launch::{Home, Mode};
use crate::mounts::Mount;
use crate::ui;
use crate::ui::say::{say, tell};

pub fn snapshot(snapshot: &Snapshot, global: &Global, home: &Home) -> Result<u8> {
    let mut instance = Instance::open(&home.dirs, &snapshot.name)?;
    let path = std::path::absolute(&snapshot.output)
        .with_context(|| format!("finding {}", snapshot.output.display()))?;
    if instance.phase() == Phase::Frozen {
        return frozen(&mut instance, &path, snapshot, global, home);
    }
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
    if !global.quiet && report["ahead"]["gave_up"] == true {
        tell!("{}", gave_up(&snapshot.name, &report));
    }
    Ok(0)
}

/// What to say of a machine under KVM that wrote its memory as fast as it was copied.
fn gave_up(name: &str, report: &serde_json::Value) -> String {
    let slowed = report["ahead"]["slowed_percent"].as_u64().unwrap_or(0);
    format!(
        "smolvm: warning: `{name}` wrote its memory as fast as it was copied, even with its CPUs stopped for {slowed}% of the \
         time, so more was copied while it stood still; take snapshots when it writes less, or run it with --engine soft, \
         where nothing is copied before"
    )
}

/// A frozen machine's file: what lies in its directory, and its base.
fn frozen(
    instance: &mut Instance,
    path: &Path,
    snapshot: &Snapshot,
    global: &Global,
    home: &Home,
) -> Result<u8> {
    let name = &snapshot.name;
    if snapshot.incremental {
        bail!(
            "`{name}` is frozen, and what is frozen is whole; leave --incremental out, or `smolvm start {name}`"
        );
    }
    // Nobody starts it meanwhile.
    instance.acquire()?;
    let mut plan = vmm::read_plan(instance)?;
    if let Some(Mount::Volume { name: volume, .. }) =
        plan.mounts.iter().find(|mount| matches!(mount, Mount::Volume { .. }))
    {
        bail!(
            "volume `{volume}` is mounted in `{name}`, and what is run from its file would go on with the volume beside \
             it; `smolvm volume snapshot {volume} NEW` copies the volume, `smolvm start {name}` goes on with both"
        );
    }
    plan.mode = Mode::Frozen;
    let media = vmm::media(&plan, &instance.record()?, home)?;
    let saved = MachineFile::open_path(&instance.saved()).context("opening what the instance saved")?;
    let file_bytes = instance::export_frozen(&media, &saved, path)?;
    if global.json {
        ui::json(&json!({ "file_bytes": file_bytes, "frozen": true }))?;
    } else if !global.quiet {
        say!("{}", snapshot.output.display());
        tell!("smolvm: {}; `{name}` stays frozen", ui::bytes(file_bytes));
    }
    Ok(0)
}
