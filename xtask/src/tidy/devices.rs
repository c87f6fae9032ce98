//! A device is named in at most three files outside its folder: where it is declared, where the machine
//! lists it, and where the boot tables or the command line know it.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;
use super::{Finding, find};

const FOLDERS: &str = "crates/devices/src/";
const LIMIT: usize = 3;

/// Checks every device that has a folder.
pub fn check(sources: &[Source], findings: &mut Vec<Finding>) {
    let mut devices: BTreeMap<&str, &Source> = BTreeMap::new();
    for source in sources {
        if let Some((device, "mod.rs")) =
            source.path.strip_prefix(FOLDERS).and_then(|rest| rest.split_once('/'))
        {
            devices.insert(device, source);
        }
    }
    for (device, home) in devices {
        let folder = format!("{FOLDERS}{device}/");
        let names: BTreeSet<_> = sources
            .iter()
            .filter(|source| {
                !source.path.starts_with(&folder) && !source.is_test() && is_named(source, device)
            })
            .map(|source| source.path.as_str())
            .collect();
        if names.len() > LIMIT {
            let list = names.into_iter().collect::<Vec<_>>().join(", ");
            find(
                findings,
                home,
                0,
                format!("the device is named in more than {LIMIT} files elsewhere: {list}"),
            );
        }
    }
}

/// By its path: `devices::<device>`, or `crate::<device>` and `mod <device>` in its own crate.
fn is_named(source: &Source, device: &str) -> bool {
    let ours = source.path.starts_with(FOLDERS);
    source.words(device).any(|at| {
        let before = source.code[..at].trim_end();
        before.ends_with("devices::") || (ours && (before.ends_with("crate::") || before.ends_with("mod")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_file_is_one_too_many() {
        let mut sources = vec![
            Source::new("crates/devices/src/blk/mod.rs", ""),
            Source::new("crates/devices/src/lib.rs", "mod blk;"),
        ];
        for file in ["builder", "save"] {
            sources.push(Source::new(&format!("crates/machine/src/{file}.rs"), "use devices::blk::Blk;"));
        }
        let count = |sources: &[Source]| {
            let mut findings = Vec::new();
            check(sources, &mut findings);
            findings.len()
        };
        assert_eq!(count(&sources), 0);
        sources.push(Source::new("crates/machine/tests/x.rs", "use devices::blk::Blk;"));
        assert_eq!(count(&sources), 0);
        sources.push(Source::new("crates/machine/src/x.rs", "let x = devices::blk::new();"));
        assert_eq!(count(&sources), 1);
    }
}
