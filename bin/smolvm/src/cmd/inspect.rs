//! `inspect`: what a machine or a file is.

use std::path::Path;

use anyhow::{Result, bail};
use artifact::{MachineFile, SectionKind};
use instance::Instance;
use serde_json::{Value, json};

use crate::args::{Global, Inspect};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::say;

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
        lines(&value, 0).iter().for_each(|line| say!("{line}"));
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

/// A value as indented lines, without what is empty; nothing that a file says reaches the terminal
/// unescaped.
fn lines(value: &Value, depth: usize) -> Vec<String> {
    let indent = "  ".repeat(depth);
    let entry = |key: &str, value: &Value| match (value, scalar(value)) {
        (_, Some(text)) if text.is_empty() => Vec::new(),
        (_, Some(text)) => vec![format!("{indent}{key}: {text}")],
        _ => {
            let mut inner = lines(value, depth + 1);
            if !inner.is_empty() {
                inner.insert(0, format!("{indent}{key}:"));
            }
            inner
        }
    };
    match value {
        Value::Object(map) => map.iter().flat_map(|(key, value)| entry(key, value)).collect(),
        Value::Array(items) => match items.iter().map(one_line).collect::<Option<Vec<_>>>() {
            Some(short) => short.into_iter().map(|item| format!("{indent}- {item}")).collect(),
            None => items.iter().enumerate().flat_map(|(i, v)| entry(&(i + 1).to_string(), v)).collect(),
        },
        other => scalar(other).into_iter().map(|text| format!("{indent}{text}")).collect(),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Object(_) | Value::Array(_) => None,
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.escape_debug().to_string()),
        other => Some(other.to_string()),
    }
}

/// An item of a list, if there is nothing nested in it.
fn one_line(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => {
            let words = map.iter().filter(|(_, v)| !v.is_null());
            let words: Option<Vec<_>> = words.map(|(k, v)| Some(format!("{k} {}", scalar(v)?))).collect();
            Some(words?.join(", "))
        }
        Value::Array(items) => Some(items.iter().map(scalar).collect::<Option<Vec<_>>>()?.join(" ")),
        other => scalar(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_is_left_out_and_short_items_take_one_line() {
        let value = json!({
            "name": "a\u{1b}[2J", "none": null, "empty": [], "word": "", "labels": {},
            "ports": [["127.0.0.1:80", 8000]],
            "argv": ["sh", "-c"],
            "sections": [{"name": "spec", "bytes": 3, "more": null}],
            "deep": [{"in": {"x": 1}}],
        });
        let said = lines(&value, 0);
        let wanted = [
            "argv:",
            "  - sh",
            "  - -c",
            "deep:",
            "  1:",
            "    in:",
            "      x: 1",
            "name: a\\u{1b}[2J",
            "ports:",
            "  - 127.0.0.1:80 8000",
            "sections:",
            "  - bytes 3, name spec",
        ];
        assert_eq!(said, wanted);
    }
}
