//! Which of two versions is newer (Debian Policy 5.6.12): epoch, then upstream version, then revision.

use std::cmp::Ordering;

/// Compares two versions as dpkg does. Words that are no versions have an order, too.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    number(a.epoch, b.epoch)
        .then_with(|| part(a.upstream, b.upstream))
        .then_with(|| part(a.revision, b.revision))
}

/// Whether a version is one of a definition's `15+*`, in which `*` stands for anything.
pub fn matches(pattern: &str, version: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = version.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match rest.split_once(piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

struct Parts<'a> {
    epoch: &'a [u8],
    upstream: &'a [u8],
    revision: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(version: &'a str) -> Self {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        // The absence of a revision is one of 0.
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        Self { epoch: epoch.as_bytes(), upstream: upstream.as_bytes(), revision: revision.as_bytes() }
    }
}

/// Digits and what is none by turns, from the left; the first difference decides.
fn part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let words = (cut(&mut a, |byte| !byte.is_ascii_digit()), cut(&mut b, |byte| !byte.is_ascii_digit()));
        let digits = (cut(&mut a, u8::is_ascii_digit), cut(&mut b, u8::is_ascii_digit));
        let found = word(words.0, words.1).then_with(|| number(digits.0, digits.1));
        if found.is_ne() {
            return found;
        }
    }
    Ordering::Equal
}

/// Takes what fits from the left.
fn cut<'a>(text: &mut &'a [u8], fits: impl Fn(&u8) -> bool) -> &'a [u8] {
    let at = text.iter().position(|byte| !fits(byte)).unwrap_or(text.len());
    let (front, rest) = text.split_at(at);
    *text = rest;
    front
}

/// `~` before the end, the end before letters, letters before everything else.
fn word(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    let length = a.len().max(b.len());
    (0..length)
        .map(|i| rank(a.get(i)).cmp(&rank(b.get(i))))
        .find(|found| found.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// As numbers of any length.
fn number(a: &[u8], b: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_dpkgs_order() {
        // Ascending; each as `dpkg --compare-versions` has it.
        let ascending = [
            "0.9~~",
            "0.9~~a",
            "0.9~",
            "0.9",
            "0.9-1~",
            "0.9-1",
            "0.9-1+b1",
            "0.9a",
            "0.9+",
            "0.9.1-1",
            "0.10-1",
            "1.0~rc1-1",
            "1.0-1",
            "1.0-1.1",
            "1.0-10",
            "1.0a-1",
            "1.00.1-1",
            "2.36-9+deb12u9",
            "2.36-9+deb12u14",
            "1:0.1",
            "1:0.2",
            "2:0",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        for (a, b) in [("1.0", "1.0-0"), ("0:1.0", "1.0"), ("1.01", "1.1"), ("1.0-00", "1.0-0")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} and {b}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, version, fits) in [
            ("15+*", "15+248", true),
            ("15+*", "16+1", false),
            ("15.2-1", "15.2-1", true),
            ("15.2-1", "15.2-10", false),
            ("*deb12*", "2.36-9+deb12u9", true),
            ("1*2*3", "1-2-4", false),
            ("1*1", "1", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, version), fits, "{pattern} and {version}");
        }
    }
}
