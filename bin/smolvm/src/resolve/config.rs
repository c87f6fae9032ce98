//! `config.toml`: what a user sets once for all commands. Unknown tables and keys are refused.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use anyhow::{Context, Result};
use serde::Deserialize;
use store::Dirs;

/// All of it; nothing need be there.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Container registries by their names.
    pub registries: BTreeMap<String, Registry>,
    pub store: Retention,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    pub mirrors: Vec<String>,
}

/// What `prune` leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// What was used within this time, like `30d`.
    pub keep: Option<spec::Duration>,
    /// The most that the store may hold, like `20GiB`, whatever `keep` says.
    pub max_size: Option<spec::Size>,
}

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// A file that cannot be read, with its line.
    pub fn read(dirs: &Dirs) -> Result<Self> {
        let path = dirs.config.join("config.toml");
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("reading {}", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_read_and_no_other() {
        let text = "[registries.\"docker.io\"]\nmirrors = [\"mirror.example\"]\n[store]\nkeep = \"30d\"\nmax_size = \"20GiB\"\n";
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.registries["docker.io"].mirrors, ["mirror.example"]);
        assert_eq!(config.store.max_size, Some(spec::Size(20 << 30)));
        assert_eq!(config.store.keep.map(|keep| keep.0.as_secs()), Some(30 * 86400));
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        for wrong in
            ["[stor]\n", "[store]\nkeeps = \"1d\"\n", "[store]\nkeep = 30\n", "[store]\nmax_size = \"20\"\n"]
        {
            assert!(toml::from_str::<Config>(wrong).is_err(), "{wrong}");
        }
    }
}
