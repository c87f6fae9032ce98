//! How long things are: files, functions, `lib.rs`, `main.rs`.

use super::source::Source;
use super::{Finding, find};

const FILE: usize = 600;
/// Files of tests, and files that say `tidy: table` in their first lines because they are one.
const TABLE: usize = 1500;
const FUNCTION: usize = 70;
const LIB: usize = 60;
const MAIN: usize = 30;

/// Checks one file.
pub fn check(source: &Source, findings: &mut Vec<Finding>) {
    let lines = source.text.lines().count();
    let is_table = source.text.lines().take(20).any(|line| line.contains("tidy: table"));
    let (limit, kind) = match source.path.rsplit('/').next() {
        _ if source.is_test() => (TABLE, "a file of tests"),
        Some("lib.rs") => (LIB, "a lib.rs is a table of contents"),
        Some("main.rs") => (MAIN, "a main.rs only starts things"),
        _ if is_table => (TABLE, "a table"),
        _ => (FILE, "a file"),
    };
    if lines > limit {
        find(findings, source, 0, format!("{lines} lines ({kind}: at most {limit})"));
    }
    for function in functions(source) {
        if function.lines > FUNCTION && !is_table {
            let what = format!("fn {} has {} lines (at most {FUNCTION})", function.name, function.lines);
            find(findings, source, function.line, what);
        }
    }
}

struct Function {
    name: String,
    /// Where it starts.
    line: usize,
    /// From `fn` to the closing brace.
    lines: usize,
}

fn functions(source: &Source) -> Vec<Function> {
    let mut found = Vec::new();
    for at in source.words("fn") {
        let rest = &source.code[at + 2..];
        let name: String =
            rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // A function pointer type or a `Fn` bound has no name.
        if name.is_empty() {
            continue;
        }
        let Some(length) = body_end(rest) else { continue };
        let line = source.line_of(at);
        found.push(Function { name, line, lines: source.line_of(at + 2 + length) - line + 1 });
    }
    found
}

/// The offset of the brace that closes the first block at depth 0; none if a `;` comes first.
fn body_end(code: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut braces = 0usize;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.checked_sub(1)?,
            b';' if depth == 0 && braces == 0 => return None,
            b'{' => braces += 1,
            b'}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 && depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check(&Source::new(path, text), &mut findings);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_function_is_measured_to_its_closing_brace() {
        let function =
            |lines: usize| format!("fn f(a: [u8; 2]) {{\n{}}}\n", "    x(\"{\"); // }\n".repeat(lines - 2));
        let text = format!("trait T {{ fn g(&self); }}\n{}", function(70));
        assert!(findings("a/src/x.rs", &text).is_empty());
        let text = format!("trait T {{ fn g(&self); }}\n{}", function(71));
        assert_eq!(findings("a/src/x.rs", &text), ["a/src/x.rs:2: fn f has 71 lines (at most 70)"]);
    }

    #[test]
    fn long_files_are_found_by_their_kind() {
        let lines = |count| "//\n".repeat(count);
        for (path, fits) in
            [("a/src/x.rs", 600), ("a/src/lib.rs", 60), ("a/src/main.rs", 30), ("a/tests/x.rs", 1500)]
        {
            assert!(findings(path, &lines(fits)).is_empty(), "{path}");
            assert_eq!(findings(path, &lines(fits + 1)).len(), 1, "{path}");
        }
        assert!(findings("a/src/x.rs", &format!("//! tidy: table\n{}", lines(1000))).is_empty());
    }
}
