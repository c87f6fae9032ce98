//! What the parts were made from: `build-info.toml`, plain `key = "value"` lines.
//!
//! `crates/assets` embeds it; `smolvm version` and `Smolfile.lock` quote it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::cache;

/// Keys and values, written in the order of the keys so that the file is reproducible.
#[derive(Default)]
pub struct BuildInfo(BTreeMap<String, String>);

impl BuildInfo {
    /// Records one fact. Quotes and line ends cannot occur in a value and are dropped.
    pub fn set(&mut self, key: &str, value: impl AsRef<str>) {
        let value = value.as_ref().trim().replace(['"', '\\', '\n'], "");
        self.0.insert(key.to_string(), value);
    }

    /// Records the BLAKE3 hash and the size of a part.
    pub fn set_part(&mut self, name: &str, bytes: &[u8]) {
        self.set(&format!("{name}_blake3"), blake3::hash(bytes).to_hex().as_str());
        self.set(&format!("{name}_bytes"), bytes.len().to_string());
    }

    /// Writes the file.
    pub fn write(&self, to: &Path) -> Result<()> {
        let mut text = String::from("# What the files beside this one were made from (cargo xtask guest).\n");
        for (key, value) in &self.0 {
            writeln!(text, "{key} = \"{value}\"")?;
        }
        cache::publish(text.as_bytes(), to)
    }
}
