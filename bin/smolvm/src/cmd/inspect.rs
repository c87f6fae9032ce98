//! `inspect`: what a machine or a file is.

use std::path::Path;

use anyhow::{Result, bail};
use artifact::{MachineFile, SectionKind};
use instance::Instance;
use serde_json::{Value, json};

use crate::args::{Global, Inspect};
use crate::launch::Home;
use crate::ui;

/// Most bytes of a lock.
const LOCK_CAP: u64 = 16 << 20;

pub fn inspect(inspect: &Inspect, global: &Global, home: &Home) -> Result<u8> {
    let what = &inspect.what;
    let value = if Path::new(what).is_file() {
        file(&MachineFile::open_path(Path::new(what))?)?
    } else if spec::valid_name(what) && home.dirs.instances().join(what).is_dir() {
        machine(&Instance::open(&home.dirs, what)?)?
    } else if let Ok(id) = home.store.find(what) {
        file(&home.store.pin(&id)?.open()?)?
    } else {
        bail!("`{what}` is no file, no machine (`smolvm ps -a`) and no name in the store (`smolvm images`)");
    };
    if global.json {
        ui::json(&value)?;
    } else {
        print(&value, 0);
    }
    Ok(0)
}

fn machine(instance: &Instance) -> Result<Value> {
    let mut value = serde_json::to_value(instance.record()?)?;
    if let Some(map) = value.as_object_mut() {
        map.insert("phase".into(), json!(instance.phase().word()));
    }
    Ok(value)
}

fn file(file: &MachineFile) -> Result<Value> {
    // What builds on another file has its definition there.
    let spec = if file.parent().is_some() { None } else { Some(instance::read_spec(file)?) };
    let sections: Vec<Value> = file
        .sections()
        .iter()
        .map(|s| json!({ "name": s.name, "bytes": s.len, "blake3": s.digest.to_string() }))
        .collect();
    let lock = match file.section(SectionKind::Lock) {
        Some(section) => String::from_utf8_lossy(&file.read_section(section, LOCK_CAP)?).into_owned(),
        None => String::new(),
    };
    let snapshots: Vec<Value> = instance::points(file)?
        .into_iter()
        .map(|point| {
            json!({
                "name": point.info.name,
                "default": point.instance == 0,
                "after_step": point.info.after_step,
                "root_image": point.info.root,
            })
        })
        .collect();
    let packages = lock.matches("[[package]]").count();
    Ok(json!({
        "id": file.id().to_string(),
        "parent": file.parent().map(|id| id.to_string()),
        "kind": if file.is_snapshot() { "snapshot" } else { "base" },
        "bytes": file.len(),
        "machine": spec,
        "snapshots": snapshots,
        "sizes": instance::sizes(file)?,
        "packages": packages,
        "sections": sections,
    }))
}

/// A value as indented lines; nothing that a file says reaches the terminal unescaped.
fn print(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let entry = |key: &str, value: &Value| match value {
        Value::Object(_) | Value::Array(_) => {
            println!("{indent}{key}:");
            print(value, depth + 1);
        }
        Value::Null => {}
        Value::String(s) => println!("{indent}{key}: {}", s.escape_debug()),
        other => println!("{indent}{key}: {other}"),
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| entry(key, value)),
        Value::Array(items) if items.iter().all(|i| i.is_string()) => {
            items.iter().filter_map(Value::as_str).for_each(|s| println!("{indent}- {}", s.escape_debug()));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| entry(&format!("{}", i + 1), item))
        }
        other => println!("{indent}{other}"),
    }
}
