//! Enough of Rust's lexical grammar to see code without its comments and strings.

/// The same text, of the same length and with the same line ends, in which every character of a comment,
/// string or character literal is a space. Braces and keywords in what remains are code.
pub fn code_only(text: &str) -> String {
    let mut out: Vec<u8> = text.as_bytes().to_vec();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' | b'b' | b'c' if !after_word(bytes, at) => literal_end(bytes, at),
            b'\'' => character_end(bytes, at),
            _ => at,
        };
        if end == at {
            at += 1;
            continue;
        }
        let end = end.min(bytes.len());
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Whole characters were blanked, so this is UTF-8 still; if not, the rules see nothing.
    String::from_utf8(out).unwrap_or_default()
}

fn after_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| at + length)
}

/// Block comments nest.
fn comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => depth += 1,
            Some(b"*/") => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            break;
        }
    }
    at
}

/// From after the opening quote to after the closing one.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// `r"…"`, `r#"…"#`, `b"…"`, `b'…'`, `br"…"`, `c"…"`; `at` itself if none of them starts here.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let prefix = rest.iter().take(2).take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    let raw = rest[..prefix].contains(&b'r');
    let hashes = if raw { rest[prefix..].iter().take_while(|byte| **byte == b'#').count() } else { 0 };
    let quote = at + prefix + hashes;
    match bytes.get(quote) {
        Some(b'"') if raw => {
            let mut close = vec![b'"'];
            close.resize(1 + hashes, b'#');
            let body = &bytes[quote + 1..];
            let length = body.windows(close.len()).position(|window| window == close);
            length.map_or(bytes.len(), |length| quote + 1 + length + close.len())
        }
        Some(b'"') => string_end(bytes, quote + 1),
        Some(b'\'') if !raw && rest[0] == b'b' => character_end(bytes, quote),
        _ => at,
    }
}

/// A character literal, or `at` itself for a lifetime or label.
fn character_end(bytes: &[u8], at: usize) -> usize {
    let body = &bytes[at + 1..];
    match body.first() {
        Some(b'\\') => {
            let length = body.iter().skip(2).position(|byte| *byte == b'\'');
            length.map_or(at, |length| at + 1 + 2 + length + 1)
        }
        Some(_) => {
            // One character of up to four bytes, then the quote.
            let width = std::str::from_utf8(&body[..body.len().min(4)])
                .or_else(|error| std::str::from_utf8(&body[..error.valid_up_to()]))
                .ok()
                .and_then(|text| text.chars().next())
                .map_or(1, char::len_utf8);
            if body.get(width) == Some(&b'\'') { at + 1 + width + 1 } else { at }
        }
        None => at,
    }
}

#[cfg(test)]
mod tests {
    use super::code_only;

    fn squeezed(text: &str) -> String {
        assert_eq!(code_only(text).len(), text.len());
        code_only(text).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_literals_are_blank() {
        let cases = [
            ("a // { b\nc", "a c"),
            ("a /* { /* } */ } */ b", "a b"),
            (r#"f("}\"{", x)"#, "f( , x)"),
            (r##"f(r#"un"safe {"#, b"{", br"{", c"{")"##, "f( , , , )"),
            (
                r"match c { '{' => 1, '\'' => 2, '\u{7b}' => 3, 'é' => 4, b'{' => 5 }",
                "match c { => 1, => 2, => 3, => 4, => 5 }",
            ),
            ("fn f<'a>(x: &'a str) -> &'a str { x }", "fn f<'a>(x: &'a str) -> &'a str { x }"),
            ("'outer: loop { break 'outer; }", "'outer: loop { break 'outer; }"),
            ("for b in bar { r }", "for b in bar { r }"),
            ("let r#type = 1;", "let r#type = 1;"),
        ];
        for (text, code) in cases {
            assert_eq!(squeezed(text), code, "{text}");
        }
    }

    #[test]
    fn an_open_literal_ends_with_the_file() {
        for text in ["\"abc", "r#\"abc\"", "/* abc", "'", "b'", "\"\\"] {
            code_only(text);
        }
    }
}
