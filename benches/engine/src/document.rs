//! The parts of docs/performance.md that programs write: each between two lines of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A part that a command writes, and the next run of it replaces.
pub struct Part {
    pub begin: &'static str,
    pub end: &'static str,
}

impl Part {
    /// Puts `text` between the marks of the document, or with them at its end.
    ///
    /// # Errors
    /// The document cannot be read or written.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        let old = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (begin, end) = (self.begin, self.end);
        let part = format!("{begin}\n{text}{end}\n");
        let new = match (old.find(begin), old.find(end)) {
            (Some(from), Some(to)) if from < to => {
                let after = to + end.len() + old[to + end.len()..].find('\n').map_or(0, |n| n + 1);
                format!("{}{part}{}", &old[..from], &old[after..])
            }
            _ => format!("{}\n\n{part}", old.trim_end()),
        };
        fs::write(path, new).with_context(|| format!("cannot write {}", path.display()))?;
        println!("written into {}", path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writing_replaces_the_first_and_leaves_other_parts_alone() {
        let one = Part { begin: "<!-- one -->", end: "<!-- one: end -->" };
        let two = Part { begin: "<!-- two -->", end: "<!-- two: end -->" };
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# Figures\n\ntext\n").unwrap();
        one.write(file.path(), "first\n").unwrap();
        two.write(file.path(), "other\n").unwrap();
        fs::write(file.path(), fs::read_to_string(file.path()).unwrap() + "after\n").unwrap();
        one.write(file.path(), "second\n").unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.starts_with("# Figures\n\ntext\n") && text.ends_with("after\n"), "{text}");
        assert!(text.contains("second") && text.contains("other") && !text.contains("first"), "{text}");
    }
}
