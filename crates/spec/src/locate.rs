//! Where in a definition's text something is said.

use toml::de::{DeTable, DeValue};

/// The line, counted from 1, that says what `path` leads to: keys of tables, and for the elements
/// of lists their numbers from 0. Where the path leads nowhere, the line of its last part that is
/// there; `None` when not even the first is, or the text is no TOML.
pub fn locate(text: &str, path: &[&str]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut at = None;
    let mut here = Some(DeValue::Table(document.into_inner()));
    for part in path {
        let (place, next) = match here? {
            DeValue::Table(table) => {
                let Some((key, value)) = table.into_iter().find(|(key, _)| key.get_ref() == part) else {
                    return at;
                };
                // A table's own header stands where its value does; a plain value's key before it.
                (key.span().start.min(value.span().start), value.into_inner())
            }
            DeValue::Array(list) => {
                let Some(value) = part.parse::<usize>().ok().and_then(|n| list.get(n).cloned()) else {
                    return at;
                };
                (value.span().start, value.into_inner())
            }
            _ => return at,
        };
        at = Some(text.get(..place).unwrap_or(text).matches('\n').count() + 1);
        here = Some(next);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_place_is_found() {
        let text = "name = \"a\"\n\n[root]\npackages = [\n  \"x\",\n  \"y\",\n]\nfiles = { \"a.b\" = \"/c\" }\n\
                    [[snapshot]]\nname = \"one\"\n[[snapshot]]\nname = \"two\"\nat = \"ready\"\n";
        let line = |path: &[&str]| locate(text, path);
        assert_eq!(line(&["name"]), Some(1));
        assert_eq!(line(&["root"]), Some(3));
        assert_eq!(line(&["root", "packages", "1"]), Some(6));
        assert_eq!(line(&["root", "files", "a.b"]), Some(8));
        assert_eq!(line(&["snapshot", "0", "name"]), Some(10));
        assert_eq!(line(&["snapshot", "1", "at"]), Some(13));
        assert_eq!(line(&["snapshot", "1", "missing"]), Some(11));
        assert_eq!(line(&["run"]), None);
        assert_eq!(locate("= no toml", &["name"]), None);
    }
}
