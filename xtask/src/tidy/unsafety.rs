//! Unsafe code: only where it is allowed, and each use with its reason. And lints switched off: with one.

use super::source::Source;
use super::{Finding, find};

/// Where `unsafe` may stand (DESIGN.md §4). Tests may have it for oracles.
const ALLOWED: &[&str] = &[
    "crates/guestmem/",
    "crates/host/",
    "crates/hv_kvm/",
    "crates/hv_hvf/",
    "crates/x86cpu/src/mmu/",
    "crates/x86cpu/src/jit/",
    // PID 1 has to fork, exec and talk to the kernel by itself; its system calls are one folder.
    "guest/agent/src/sys/",
];

/// How many lines above an `unsafe` its comment may end: attributes and the statement's start between.
const REACH: usize = 6;

/// Checks one file.
pub fn check(source: &Source, findings: &mut Vec<Finding>) {
    let lines: Vec<&str> = source.text.lines().collect();
    let allowed = source.is_test() || ALLOWED.iter().any(|place| source.path.starts_with(place));
    for at in source.words("unsafe") {
        let line = source.line_of(at);
        if !allowed {
            find(findings, source, line, "unsafe is not allowed here");
        }
        let next = source.code[at + 6..].trim_start();
        // What an unsafe fn asks of its callers is in its documentation, which clippy looks for.
        let needs_reason = next.starts_with('{') || next.starts_with("impl");
        if needs_reason && !is_explained(&lines, line) {
            find(findings, source, line, "unsafe without `SAFETY:`");
        }
    }
    for at in source.words("allow") {
        let line = source.line_of(at);
        let rest = &source.code[at..];
        let inside = rest.split(')').next().unwrap_or_default();
        let before = source.code[..at].trim_end();
        let is_attribute = before.ends_with("#[") || before.ends_with("#![");
        if is_attribute && inside.contains("clippy::") && !has_reason(&source.text[at..], &lines, line) {
            find(findings, source, line, "a lint is switched off without a reason");
        }
    }
}

/// Looks for `SAFETY:` on the line and a few lines of code above it.
fn is_explained(lines: &[&str], line: usize) -> bool {
    let wanted = "SAFETY:";
    if lines[line - 1].contains(wanted) {
        return true;
    }
    let mut passed = 0;
    for above in lines[..line - 1].iter().rev() {
        let above = above.trim();
        if above.contains(wanted) {
            return true;
        }
        if !above.starts_with("//") {
            passed += 1;
        }
        if passed > REACH {
            break;
        }
    }
    false
}

fn has_reason(attribute: &str, lines: &[&str], line: usize) -> bool {
    let attribute = attribute.split(']').next().unwrap_or_default();
    let above = line.checked_sub(2).and_then(|index| lines.get(index)).map_or("", |line| line.trim());
    attribute.contains("reason =") || lines[line - 1].contains("//") || above.starts_with("//")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        let mut findings = Vec::new();
        check(&Source::new(path, text), &mut findings);
        findings.len()
    }

    #[test]
    fn unsafe_needs_a_place_and_a_reason() {
        let good = "fn f() {\n    // SAFETY: it is ours\n    let x = unsafe { g() };\n}\n";
        assert_eq!(findings("crates/host/src/a.rs", good), 0);
        assert_eq!(findings("crates/disk/src/a.rs", good), 1);
        assert_eq!(findings("crates/disk/tests/a.rs", good), 0);
        assert_eq!(findings("crates/host/src/a.rs", "fn f() {\n    unsafe { g() }\n}\n"), 1);
        assert_eq!(
            findings("crates/host/src/a.rs", "/// # Safety\n/// p is valid\nunsafe fn f(p: *const u8) {}"),
            0
        );
        assert_eq!(findings("crates/host/src/a.rs", "type F = unsafe fn(u8);"), 0);
        assert_eq!(findings("crates/disk/src/a.rs", "// unsafe {\nlet s = \"unsafe {\";"), 0);
        assert_eq!(findings("crates/disk/src/a.rs", "#![deny(unsafe_code)]"), 0);
    }

    #[test]
    fn a_lint_is_switched_off_with_a_reason_only() {
        for (text, expected) in [
            ("#[allow(clippy::x)]\nfn f() {}", 1),
            ("#[allow(clippy::x, reason = \"why\")]\nfn f() {}", 0),
            ("// why\n#[allow(clippy::x)]\nfn f() {}", 0),
            ("fn allow(clippy: u8) {}", 0),
        ] {
            assert_eq!(findings("crates/disk/src/a.rs", text), expected, "{text}");
        }
    }
}
