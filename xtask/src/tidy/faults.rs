//! docs/faults.md names tests: each of them is there.

use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;
use super::source::Source;

const PAGE: &str = "docs/faults.md";

/// Checks the page against the sources.
pub fn check(root: &Path, sources: &[Source], findings: &mut Vec<Finding>) -> Result<()> {
    let text = std::fs::read_to_string(root.join(PAGE)).with_context(|| format!("reading {PAGE}"))?;
    for (number, name) in missing(&text, sources) {
        findings.push(Finding { place: (PAGE.into(), number), what: format!("there is no test `{name}`") });
    }
    Ok(())
}

/// The tests that a table names and nobody has, with their lines.
fn missing<'a>(text: &'a str, sources: &[Source]) -> Vec<(usize, &'a str)> {
    let rows = (1..).zip(text.lines()).filter(|(_, line)| line.starts_with('|'));
    let names =
        rows.flat_map(|(number, line)| line.split('`').skip(1).step_by(2).map(move |name| (number, name)));
    let is_there = |name: &str| match name.ends_with(".rs") {
        true => sources.iter().any(|source| source.path.ends_with(&format!("/{name}"))),
        false => sources.iter().any(|source| {
            let named = format!("fn {name}(");
            source.code.contains(&named)
        }),
    };
    // Names of tests are sentences; other words in backticks are what they are.
    let is_test = |name: &str| name.ends_with(".rs") || name.matches('_').count() > 1;
    names.filter(|(_, name)| is_test(name) && !is_there(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_there_is_found() {
        let source = Source::new("crates/x/tests/y.rs", "#[test]\nfn it_is_so_here() {}\n");
        let text = "`not_in_a_table`\n| fault | test |\n|---|---|\n| a `..` | x `it_is_so_here`, `it_is_not_so` |\n\
                    | b | x `y.rs`, `z.rs` |\n";
        assert_eq!(missing(text, &[source]), [(4, "it_is_not_so"), (5, "z.rs")]);
    }
}
