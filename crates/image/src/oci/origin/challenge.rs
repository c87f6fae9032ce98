//! What a registry asks for in `WWW-Authenticate` (RFC 9110, section 11.6.1).

/// A way to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    /// A token from `realm` (Distribution specification, "Token Authentication").
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenge to answer in a header's value: Bearer before Basic, None for others.
pub(super) fn parse(header: &str) -> Option<Challenge> {
    let words = tokens(header)?;
    let mut schemes: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for (word, value) in words {
        match value {
            None => schemes.push((word.to_ascii_lowercase(), Vec::new())),
            Some(value) => schemes.last_mut()?.1.push((word.to_ascii_lowercase(), value)),
        }
    }
    let of = |name: &str| schemes.iter().find(|(scheme, _)| scheme == name);
    if let Some((_, parameters)) = of("bearer") {
        let get = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        return Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
        });
    }
    of("basic").map(|_| Challenge::Basic)
}

/// Words and `key=value` pairs between blanks and commas; a value may be quoted.
fn tokens(mut rest: &str) -> Option<Vec<(String, Option<String>)>> {
    let mut found = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return Some(found);
        }
        let end = rest.find(['=', ' ', '\t', ',']).unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        rest = &rest[end..];
        let Some(value) = rest.strip_prefix('=') else {
            found.push((word, None));
            continue;
        };
        if let Some(quoted) = value.strip_prefix('"') {
            let (text, after) = unquote(quoted)?;
            found.push((word, Some(text)));
            rest = after;
        } else {
            let end = value.find([',', ' ', '\t']).unwrap_or(value.len());
            found.push((word, Some(value[..end].to_owned())));
            rest = &value[end..];
        }
    }
}

fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((text, &quoted[at + 1..])),
            '\\' => text.push(chars.next()?.1),
            c => text.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let header = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("reg".into()),
            scope: Some("repository:a/b:pull".into()),
        };
        assert_eq!(parse(header), Some(bearer.clone()));
        assert_eq!(parse(&format!("Basic realm=\"x\", {header}")), Some(bearer));
        assert_eq!(parse("basic realm=x"), Some(Challenge::Basic));
        for bad in ["", "Negotiate", "Bearer service=\"x\"", "Bearer realm=\"x", "=", "a=b"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
