//! The order of the crates: ARCHITECTURE.md's list against the Cargo.toml files; and `cfg(target_arch)`,
//! which belongs to the crates that touch the host.
//!
//! The list is the first fenced block of ARCHITECTURE.md in which most lines start with the name of a
//! crate (`bin/`, `crates/` and indentation before it don't count; several names may share a line, and
//! then don't depend on one another). A crate may depend on crates of lower lines only. Development
//! dependencies are free.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::source::Source;
use super::{Finding, find};

/// In x86cpu's `lib.rs` it silences what hosts without a JIT leave unused, and chooses nothing.
const TARGET_ARCH_ALLOWED: &[&str] =
    &["crates/host/", "crates/hv_", "crates/x86cpu/src/jit/", "crates/x86cpu/src/lib.rs", "xtask/"];

/// Checks one file for `target_arch`.
pub fn check_target_arch(source: &Source, findings: &mut Vec<Finding>) {
    let allowed = source.is_test() || TARGET_ARCH_ALLOWED.iter().any(|place| source.path.starts_with(place));
    for at in source.words("target_arch").filter(|_| !allowed) {
        let what = "the guest's architecture is not the host's: target_arch is for host, hv_* and x86cpu/jit";
        find(findings, source, source.line_of(at), what);
    }
}

/// Checks the list of ARCHITECTURE.md against every Cargo.toml.
pub fn check_order(root: &Path, findings: &mut Vec<Finding>) -> Result<()> {
    let mut say = |what: String| findings.push(Finding { place: ("ARCHITECTURE.md".to_string(), 0), what });
    let crates = crates(root)?;
    let Ok(text) = fs::read_to_string(root.join("ARCHITECTURE.md")) else {
        say("missing: it holds the list of crates".to_string());
        return Ok(());
    };
    let ranks = ranks(&text, &crates);
    for (name, dependencies) in &crates {
        let Some(rank) = ranks.get(name.as_str()) else {
            say(format!("the crate {name} is not in the list"));
            continue;
        };
        for dependency in dependencies {
            if ranks.get(dependency.as_str()).is_some_and(|below| below <= rank) {
                say(format!("{name} depends on {dependency}, which is not below it in the list"));
            }
        }
    }
    Ok(())
}

/// Each workspace crate with those that it depends on. The agent and xtask are programs of their own.
fn crates(root: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut manifests = BTreeMap::new();
    for group in ["crates", "bin"] {
        let dir = root.join(group);
        let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries.flatten() {
            let path = entry.path().join("Cargo.toml");
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let manifest: toml::Table =
                text.parse().with_context(|| format!("cannot read {}", path.display()))?;
            manifests.insert(entry.file_name().to_string_lossy().into_owned(), manifest);
        }
    }
    let names: Vec<_> = manifests.keys().cloned().collect();
    Ok(manifests.iter().map(|(name, manifest)| (name.clone(), dependencies(manifest, &names))).collect())
}

fn dependencies(manifest: &toml::Table, names: &[String]) -> Vec<String> {
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let per_target = targets.into_iter().flat_map(|table| table.values()).filter_map(toml::Value::as_table);
    std::iter::once(manifest)
        .chain(per_target)
        .flat_map(|table| [table.get("dependencies"), table.get("build-dependencies")])
        .filter_map(|section| section?.as_table())
        .flat_map(|section| section.keys())
        .filter(|name| names.contains(name))
        .cloned()
        .collect()
}

/// Each listed crate with its line in the list.
fn ranks<'a>(text: &'a str, crates: &BTreeMap<String, Vec<String>>) -> BTreeMap<&'a str, usize> {
    let names = |line: &'a str| -> Vec<&'a str> {
        let words = line.split([' ', '\t', '`', ',', '|', '·']).filter(|word| !word.is_empty());
        words
            .map(|word| word.rsplit('/').find(|part| !part.is_empty()).unwrap_or(word))
            .take_while(|word| crates.contains_key(*word))
            .collect()
    };
    for block in text.split("\n```").skip(1).step_by(2) {
        let lines: Vec<_> = block.lines().skip(1).collect();
        let named = lines.iter().filter(|line| !names(line).is_empty()).count();
        if named > 2 && named * 2 > lines.len() {
            let ranked = lines.iter().enumerate();
            return ranked
                .flat_map(|(rank, line)| names(line).into_iter().map(move |name| (name, rank)))
                .collect();
        }
    }
    BTreeMap::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_gives_each_crate_its_rank() {
        let crates = ["smolvm", "machine", "hv_soft", "hv_kvm", "hv"].map(|name| (name.to_string(), vec![]));
        let text = "# A\n```\nlet x = 1;\nlet y = 2;\nlet z = 3;\n```\ntext\n```text\nbin/smolvm  the program\n\
                    crates/\n  machine   builder · hv · loop\n  hv_soft hv_kvm  engines\n  hv\n```\n";
        let ranks = ranks(text, &crates.into());
        let order = ["smolvm", "machine", "hv_soft", "hv"].map(|name| ranks[name]);
        assert!(order.is_sorted_by(|one, other| one < other), "{order:?}");
        assert_eq!(ranks["hv_soft"], ranks["hv_kvm"]);
    }

    #[test]
    fn only_dependencies_of_the_house_count() {
        let manifest =
            "[dependencies]\nhv.workspace = true\nlibc = \"1\"\n[dev-dependencies]\nmachine = {}\n\
                        [target.'cfg(unix)'.dependencies]\nhost = {}\n"
                .parse()
                .unwrap();
        let names = ["host", "hv", "machine"].map(str::to_string);
        assert_eq!(dependencies(&manifest, &names), ["hv", "host"]);
    }
}
