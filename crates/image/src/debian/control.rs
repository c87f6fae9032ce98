//! A package's control stanza (deb-control(5)): fields in order, continuation lines kept.

/// One stanza.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Name and value as written, continuation lines with their leading blank.
    pub fields: Vec<(String, String)>,
}

impl Control {
    /// Reads one stanza. None when a line is neither a field nor a continuation.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in text.lines() {
            if line.trim().is_empty() {
                match fields.is_empty() {
                    true => continue,
                    false => break,
                }
            }
            if line.starts_with([' ', '\t']) {
                let (_, value) = fields.last_mut()?;
                value.push('\n');
                value.push_str(line.trim_end());
                continue;
            }
            let (name, value) = line.split_once(':')?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        Some(Self { fields })
    }

    /// A field's value; names compare without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Package names in a relation field like Replaces, without versions and architectures.
    pub fn names_in(&self, field: &str) -> impl Iterator<Item = &str> {
        self.get(field)
            .unwrap_or_default()
            .split([',', '|'])
            .filter_map(|one| one.split([' ', '(', '[', ':', '\n']).find(|s| !s.is_empty()))
    }
}
