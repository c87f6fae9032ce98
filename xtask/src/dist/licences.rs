//! The licence texts of what is inside the binary: the Rust crates, the kernel, busybox.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::paths::Paths;
use crate::run;

/// Licences that must not be inside our binary (the guest's programs are separate works beside it).
const REFUSED: &[&str] = &["GPL", "LGPL", "AGPL"];

/// Debian's copy of the text under which the kernel and busybox come.
const GPL_2: &str = "/usr/share/common-licenses/GPL-2";

/// (file name, text): one file for all crates, one for the guest's programs.
pub fn texts(paths: &Paths) -> Result<Vec<(&'static str, String)>> {
    let gpl =
        fs::read_to_string(GPL_2).with_context(|| format!("cannot read {GPL_2} (package base-files)"))?;
    Ok(vec![("rust-crates.txt", crates(paths)?), ("GPL-2.txt", gpl)])
}

/// Cargo's home: where the sources of the crates are.
pub fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    Ok(PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo"))
}

fn metadata(paths: &Paths) -> Result<Value> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version=1", "--locked"]).current_dir(&paths.root);
    command.args(["--filter-platform", &format!("{}-unknown-linux-gnu", env::consts::ARCH)]);
    serde_json::from_str(&run::output(&mut command)?).context("`cargo metadata` wrote no JSON")
}

/// Every crate of others that is linked into `smolvm` or the agent, with the licence texts it carries.
fn crates(paths: &Paths) -> Result<String> {
    let metadata = metadata(paths)?;
    let linked = linked(&metadata, &["smolvm", "agent"])?;
    let mut text = String::from("The Rust crates inside smolvm, and their licences.\n");
    for package in list(&metadata["packages"]) {
        let word = |key: &str| package[key].as_str().unwrap_or_default();
        // Crates of this workspace have no source.
        if !linked.contains(word("id")) || package["source"].is_null() {
            continue;
        }
        let licence = word("license");
        ensure!(is_accepted(licence), "the crate {} has the licence {licence:?}", word("name"));
        writeln!(text, "\n{}\n{} {} ({licence})\n", "=".repeat(78), word("name"), word("version"))?;
        let dir = Path::new(word("manifest_path")).parent().context("a manifest has no directory")?;
        for (name, body) in licence_files(dir)? {
            writeln!(text, "--- {name} ---\n{}", body.trim())?;
        }
    }
    Ok(text)
}

/// The ids of the packages reachable from the named ones by dependencies that end up in a binary.
fn linked<'a>(metadata: &'a Value, names: &[&str]) -> Result<BTreeSet<&'a str>> {
    let mut edges = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let dependencies = list(&node["deps"]).iter().filter(|dep| {
            // A null kind is a normal dependency.
            list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
        });
        let ids: Vec<_> = dependencies.filter_map(|dep| dep["pkg"].as_str()).collect();
        edges.insert(node["id"].as_str().unwrap_or_default(), ids);
    }
    let roots = list(&metadata["packages"])
        .iter()
        .filter(|package| package["source"].is_null() && names.iter().any(|name| package["name"] == **name));
    let mut open: Vec<_> = roots.filter_map(|package| package["id"].as_str()).collect();
    if open.len() != names.len() {
        bail!("`cargo metadata` does not list {}", names.join(" and "));
    }
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            open.extend(edges.get(id).into_iter().flatten().copied());
        }
    }
    Ok(seen)
}

/// SPDX: of alternatives (`OR`) one is enough, of parts (`AND`, which binds tighter) all must be fine.
fn is_accepted(licence: &str) -> bool {
    let licence = licence.trim();
    if let [_, _, ..] = split(licence, " OR ").as_slice() {
        return split(licence, " OR ").into_iter().any(is_accepted);
    }
    if let [_, _, ..] = split(licence, " AND ").as_slice() {
        return split(licence, " AND ").into_iter().all(is_accepted);
    }
    if let Some(inside) = licence.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        return is_accepted(inside);
    }
    // An old way to write OR.
    licence.split('/').any(|one| !one.is_empty() && !REFUSED.iter().any(|refused| one.starts_with(refused)))
}

/// Splits at an operator outside parentheses.
fn split<'a>(licence: &'a str, operator: &str) -> Vec<&'a str> {
    let depth = |text: &str| text.matches('(').count() as i64 - text.matches(')').count() as i64;
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, _) in licence.match_indices(operator) {
        if depth(&licence[..at]) == 0 {
            parts.push(&licence[start..at]);
            start = at + operator.len();
        }
    }
    parts.push(&licence[start..]);
    parts
}

fn licence_files(dir: &Path) -> Result<Vec<(String, String)>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let upper = name.to_uppercase();
            let is_one = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
            let is_one = is_one.iter().any(|start| upper.starts_with(start));
            Some((name, fs::read_to_string(entry.path()).ok().filter(|_| is_one)?))
        })
        .collect();
    files.sort();
    Ok(files)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_enough_and_a_demand_is_not_waived() {
        for fine in [
            "MIT",
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "GPL-2.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "BSD-3-Clause AND MIT",
        ] {
            assert!(is_accepted(fine), "{fine}");
        }
        for bad in [
            "",
            "(MIT OR Apache-2.0) AND GPL-2.0",
            "GPL-2.0",
            "LGPL-2.1-or-later",
            "MIT AND GPL-3.0",
            "AGPL-3.0 OR GPL-2.0",
        ] {
            assert!(!is_accepted(bad), "{bad}");
        }
    }

    #[test]
    fn every_crate_of_this_workspace_may_be_inside() {
        let text = crates(&Paths::find().unwrap()).unwrap();
        assert!(text.contains("rustix") && text.contains("Permission is hereby granted"));
        assert!(!text.contains("\nproptest "), "a crate for tests only is not linked");
    }

    #[test]
    fn the_page_lists_every_crate_that_was_chosen() {
        let paths = Paths::find().unwrap();
        let page = fs::read_to_string(paths.root.join("docs/licences.md")).unwrap();
        let words: BTreeSet<&str> = page.split([' ', ',', '|', '`', '(', ')', '\n']).collect();
        let metadata = metadata(&paths).unwrap();
        let ours: BTreeSet<&str> = list(&metadata["packages"])
            .iter()
            .filter(|package| package["source"].is_null())
            .filter_map(|package| package["name"].as_str())
            .collect();
        let linked = linked(&metadata, &["smolvm", "agent"]).unwrap();
        for package in list(&metadata["packages"]) {
            let inside = package["source"].is_null() && linked.contains(package["id"].as_str().unwrap());
            for dependency in list(&package["dependencies"]).iter().filter(|_| inside) {
                let name = dependency["name"].as_str().unwrap();
                let listed = ours.contains(name) || !dependency["kind"].is_null() || words.contains(name);
                assert!(listed, "docs/licences.md does not have {name}");
            }
        }
    }

    #[test]
    fn build_dependencies_are_not_linked() {
        let metadata = serde_json::json!({
            "packages": [
                {"name": "smolvm", "id": "s", "source": null},
                {"name": "zstd", "id": "z", "source": "registry"},
            ],
            "resolve": {"nodes": [
                {"id": "s", "deps": [
                    {"pkg": "z", "dep_kinds": [{"kind": null}]},
                    {"pkg": "cc", "dep_kinds": [{"kind": "build"}]},
                ]},
                {"id": "z", "deps": [{"pkg": "zsys", "dep_kinds": [{"kind": "dev"}, {"kind": null}]}]},
            ]},
        });
        assert_eq!(linked(&metadata, &["smolvm"]).unwrap(), BTreeSet::from(["s", "z", "zsys"]));
        assert!(linked(&metadata, &["smolvm", "agent"]).is_err());
    }
}
