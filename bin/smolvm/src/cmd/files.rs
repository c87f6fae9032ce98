//! The store: `verify`, `import`, `images`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use artifact::{MachineFile, VerifyOptions};
use serde_json::json;
use store::{Image, ImageKind, ImportOptions, Origin};

use crate::args::{Files, Global, Import};
use crate::cmd::silent;
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{say, tell};

/// The machine file at a path; else that of a name in the store, if there is one.
///
/// # Errors
/// What stands in the way of the first.
pub fn open(path: &Path) -> Result<MachineFile> {
    let named = || {
        let name = path.to_str().filter(|word| !word.contains('/') && !path.exists())?;
        let store = Home::open().ok()?.store;
        store.pin(&store.find(name).ok()?).ok()?.open().ok()
    };
    match named() {
        Some(file) => Ok(file),
        None => Ok(MachineFile::open_path(path)?),
    }
}

pub fn verify(files: &Files, global: &Global) -> Result<u8> {
    let mut results = Vec::new();
    for path in &files.files {
        let file = open(path)?;
        let go_on = |_| ControlFlow::Continue(());
        file.verify_all(VerifyOptions { threads: 0, progress: Some(&go_on) })?;
        if !silent(global) {
            say!("{}: whole, {}, id {}", path.display(), ui::bytes(file.len()), file.id().short());
        }
        results.push(json!({ "file": path, "id": file.id().to_string(), "bytes": file.len(), "ok": true }));
    }
    if global.json {
        ui::json(&results)?;
    }
    Ok(0)
}

pub fn import(import: &Import, global: &Global, home: &Home) -> Result<u8> {
    let (pin, taken) = match import.moved {
        true => {
            let taken = home.store.take_over(&import.file, ImportOptions::default())?;
            (home.store.pin(&taken.pin().id())?, Some(taken))
        }
        false => (home.store.import(&import.file)?, None),
    };
    let name = match &import.name {
        Some(name) => name.clone(),
        None => instance::Media::open_in(&home.store, home.store.pin(&pin.id())?)?.spec.name,
    };
    let before = home.store.resolve(&name)?.filter(|tag| tag.id != pin.id());
    home.store.tag(&name, &pin.id(), Origin::Imported)?;
    if let Some(before) = before
        && !silent(global)
    {
        tell!("smolvm: {name} was {} until now, which keeps its id", before.id.short());
    }
    // Only now that it has a name there: what has none may be pruned.
    if let Some(taken) = taken
        && !taken.finish()?
    {
        tell!("smolvm: {} is another file by now, and stays", import.file.display());
    }
    if global.json {
        ui::json(&json!({ "name": name, "id": pin.id().to_string() }))?;
    } else {
        say!("{name}");
    }
    Ok(0)
}

pub fn images(global: &Global, home: &Home) -> Result<u8> {
    let images = home.store.images()?;
    if global.json {
        let rows: Vec<_> = images.iter().map(|image| row(image, home)).collect();
        ui::json(&rows)?;
        return Ok(0);
    }
    let cells = |image: &Image| {
        vec![
            names(image, home),
            image.id.short(),
            format!("{:?}", image.kind).to_lowercase(),
            ui::bytes(image.len),
            age(image.created),
            age(image.last_used),
            snapshots(image, home).join(", "),
        ]
    };
    let rows: Vec<Vec<String>> = images.iter().map(cells).collect();
    ui::table(&["NAME", "ID", "KIND", "SIZE", "CREATED", "USED", "SNAPSHOTS"], &rows);
    Ok(0)
}

/// Its names; of a container image, which is named by its digest, also what it is called.
fn names(image: &Image, home: &Home) -> String {
    let own = if image.names.is_empty() { "-".into() } else { image.names.join(", ") };
    if image.kind != ImageKind::Oci {
        return own;
    }
    let spec = home.store.look(&image.id).map_err(instance::Error::from);
    match spec.and_then(|file| instance::read_spec(&file)) {
        Ok(spec) => format!("{own} ({})", spec.name),
        // A file of another version: `verify` and `doctor` say more.
        Err(_) => own,
    }
}

/// What can be resumed from it; the last is the default.
fn snapshots(image: &Image, home: &Home) -> Vec<String> {
    let points = match image.kind {
        ImageKind::Snapshot => home
            .store
            .look(&image.id)
            .map(|file| instance::points(&file).unwrap_or_default())
            .unwrap_or_default(),
        _ => Vec::new(),
    };
    points.into_iter().map(|point| point.info.name).collect()
}

fn row(image: &Image, home: &Home) -> serde_json::Value {
    let seconds = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    json!({
        "id": image.id.to_string(),
        "names": image.names,
        "kind": format!("{:?}", image.kind).to_lowercase(),
        "snapshots": snapshots(image, home),
        "bytes": image.len,
        "created": seconds(image.created),
        "last_used": seconds(image.last_used),
        "in_use": image.in_use,
    })
}

fn age(at: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(at).map_or(0, |d| d.as_secs());
    format!("{} ago", ui::span(seconds))
}
