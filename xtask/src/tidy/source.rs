//! The Rust files of the checkout.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::lexer;

/// Directories that hold no source of ours.
const SKIPPED: &[&str] = &["target", ".git", "corpus", "artifacts", "node_modules"];

/// One Rust file.
pub struct Source {
    /// Path in the checkout, with `/`.
    pub path: String,
    /// The file as it is.
    pub text: String,
    /// The same, of the same length, with comments and literals blank.
    pub code: String,
}

impl Source {
    /// Makes one from its text.
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_string(), text: text.to_string(), code: lexer::code_only(text) }
    }

    /// Tests, benches, fuzz targets, examples: more lines are allowed, and oracles may be unsafe.
    pub fn is_test(&self) -> bool {
        let dirs = ["tests", "benches", "fuzz", "examples", "oracle"];
        let mut parts = self.path.split('/');
        let name = parts.next_back().unwrap_or_default();
        parts.any(|part| dirs.contains(&part)) || name == "tests.rs" || name.ends_with("_tests.rs")
    }

    /// The line (from 1) of a byte offset.
    pub fn line_of(&self, offset: usize) -> usize {
        1 + self.code[..offset].bytes().filter(|byte| *byte == b'\n').count()
    }

    /// Offsets at which `word` stands in the code as a whole word.
    pub fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let bytes = self.code.as_bytes();
        self.code.match_indices(word).map(|(at, _)| at).filter(move |at| {
            let before = at.checked_sub(1).and_then(|before| bytes.get(before));
            let after = bytes.get(at + word.len());
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
    }
}

/// Reads every Rust file below `root`, in the order of their paths.
pub fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    walk(root, root, &mut sources)?;
    sources.sort_by(|one: &Source, other| one.path.cmp(&other.path));
    Ok(sources)
}

fn walk(root: &Path, dir: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().with_context(|| format!("cannot see {}", path.display()))?;
        if kind.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
            walk(root, &path, sources)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            sources.push(Source::new(&relative, &text));
        }
    }
    Ok(())
}
