//! `init` and `check`.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, bail};
use build::Definition;
use serde_json::json;
use spec::Smolfile;

use crate::args::{Check, Global, Init};
use crate::ui;
use crate::ui::say::{say, tell};

/// A first definition: it builds as it is, and what most people want next is there to be taken in.
const FIRST: &str = include_str!("first.smolfile");

pub fn init(init: &Init) -> Result<u8> {
    fs::create_dir_all(&init.dir).with_context(|| format!("making {}", init.dir.display()))?;
    let path = init.dir.join("Smolfile");
    let dir = fs::canonicalize(&init.dir).with_context(|| format!("finding {}", init.dir.display()))?;
    let name = dir.file_name().and_then(|n| n.to_str()).filter(|n| spec::valid_name(n)).unwrap_or("machine");
    let file = fs::File::options().write(true).create_new(true).open(&path);
    let mut file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; `smolvm check {0}` validates it", path.display())
        }
        Err(e) => return Err(e).with_context(|| format!("making {}", path.display())),
    };
    file.write_all(FIRST.replace("NAME", name).as_bytes())?;
    say!("{}", path.display());
    tell!("smolvm: next: smolvm build, then smolvm run -d -p 8000:8000 {name}.smolmachine");
    Ok(0)
}

pub fn check(check: &Check, global: &Global) -> Result<u8> {
    if check.schema {
        say!("{}", spec::json_schema());
        return Ok(0);
    }
    let definition = build::check(&check.file)?;
    if global.json {
        let Definition { file, spec, .. } = &definition;
        let kernel = definition
            .kernel
            .as_ref()
            .map(|kernel| json!({ "release": kernel.release, "form": kernel.form, "notes": kernel.notes }));
        let snapshots: Vec<_> = file.snapshot.iter().map(|s| &s.name).collect();
        ui::json(&json!({
            "machine": spec, "root": file.root, "kernel": kernel, "steps": file.build.steps, "snapshots": snapshots
        }))?;
    } else if !global.quiet {
        say!("{}: ok", check.file.display());
        resolved(&definition).iter().for_each(|(key, value)| say!("{key:<10} {value}"));
        let notes = definition.kernel.iter().flat_map(|kernel| &kernel.notes);
        notes.for_each(|note| tell!("smolvm: {note}"));
    }
    Ok(0)
}

/// What the definition means, a line for each part.
fn resolved(definition: &Definition) -> Vec<(&'static str, String)> {
    let Definition { file, spec, .. } = definition;
    let plural = if spec.vcpus == 1 { "" } else { "s" };
    let mut lines = vec![
        ("machine", format!("{}: {} CPU{plural}, {}", spec.name, spec.vcpus, file.memory)),
        ("root", root(file)),
    ];
    if let Some(kernel) = &definition.kernel {
        lines.push(("kernel", format!("Linux {} ({})", kernel.release.escape_debug(), kernel.form)));
    }
    if !file.build.steps.is_empty() {
        lines.push(("steps", file.build.steps.len().to_string()));
    }
    if let Some(service) = &spec.service {
        let as_user = service.user.as_ref().map(|u| format!(" as {u}")).unwrap_or_default();
        let in_dir = service.workdir.as_ref().map(|d| format!(" in {d}")).unwrap_or_default();
        lines.push(("service", format!("{}{as_user}{in_dir}", service.argv.join(" "))));
    }
    if let Some(ready) = &spec.ready {
        let check = serde_json::to_value(&ready.check).unwrap_or_default();
        let (kind, value) = match check.as_object().and_then(|map| map.iter().next()) {
            Some((kind, value)) => (kind.to_lowercase(), value.to_string()),
            None => Default::default(),
        };
        lines.push(("ready", format!("{kind} {value}, within {} s", ready.timeout_ms / 1000)));
    }
    let names: Vec<&str> = file.snapshot.iter().map(|s| s.name.as_str()).collect();
    lines.push(match names.is_empty() {
        true => ("snapshots", format!("{} (when the service is ready)", instance::UNNAMED)),
        false => ("snapshots", names.join(", ")),
    });
    lines
}

fn root(file: &Smolfile) -> String {
    let source = match (&file.root.packages, &file.root.dir, &file.root.tar) {
        (Some(packages), _, _) => format!("Debian packages {}", packages.join(", ")),
        (_, Some(dir), _) => format!("directory {dir}"),
        (_, _, Some(tar)) => format!("archive {tar}"),
        _ => "the built-in busybox machine".to_owned(),
    };
    let files: Vec<String> =
        file.root.files.iter().map(|(host, guest)| format!("{host} to {guest}")).collect();
    if files.is_empty() { source } else { format!("{source}; files {}", files.join(", ")) }
}
