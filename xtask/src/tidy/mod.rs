//! `cargo xtask tidy`: the house rules that no compiler holds. Each rule is a function over the sources.
//!
//! Next: `source.rs` (the files, and their code without comments and strings), then one file a rule:
//! `sizes.rs`, `unsafety.rs`, `layers.rs`, `devices.rs`, `faults.rs`.

mod devices;
mod faults;
mod layers;
mod lexer;
mod sizes;
mod source;
mod unsafety;

use std::fmt;

use anyhow::{Result, bail};

use crate::paths::Paths;
use source::Source;

/// One broken rule at one place.
struct Finding {
    /// Path in the checkout, and the line (0: the whole file).
    place: (String, usize),
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match &self.place {
            (path, 0) => write!(out, "{path}: {}", self.what),
            (path, line) => write!(out, "{path}:{line}: {}", self.what),
        }
    }
}

/// Checks the checkout; prints every finding and fails if there is one.
pub fn check(paths: &Paths) -> Result<()> {
    let sources = source::read_all(&paths.root)?;
    let mut findings = Vec::new();
    for source in &sources {
        sizes::check(source, &mut findings);
        unsafety::check(source, &mut findings);
        layers::check_target_arch(source, &mut findings);
    }
    devices::check(&sources, &mut findings);
    layers::check_order(&paths.root, &mut findings)?;
    faults::check(&paths.root, &sources, &mut findings)?;
    findings.sort_by(|one, other| one.place.cmp(&other.place));
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings in {} files of Rust", findings.len(), sources.len());
    }
    eprintln!("tidy: {} files of Rust, nothing to say", sources.len());
    Ok(())
}

fn find(findings: &mut Vec<Finding>, source: &Source, line: usize, what: impl Into<String>) {
    findings.push(Finding { place: (source.path.clone(), line), what: what.into() });
}
