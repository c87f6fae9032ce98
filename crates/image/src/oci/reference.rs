//! The name of an image at a registry, `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as docker reads it.
//!
//! The grammar is that of the distribution project's package `reference`; what a registry takes for path and tag is in
//! distribution-spec 1.1, "Pulling manifests".

use std::fmt;

/// The registry of a name without one.
const DOCKER_HUB: &str = "docker.io";
/// Another name of it.
const DOCKER_HUB_BEFORE: &str = "index.docker.io";
/// Where it keeps images whose path has one part.
const OFFICIAL: &str = "library";
/// Longest path, in bytes.
const LONGEST_PATH: usize = 255;
/// Longest tag, in bytes.
const LONGEST_TAG: usize = 128;
/// Algorithms of digests, and how many hexadecimal digits one has.
const DIGESTS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// Reads one; without tag and digest it means `latest`.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(word: &str) -> Result<Self, String> {
        let (word, digest) = match word.split_once('@') {
            Some((word, digest)) => (word, Some(checked_digest(digest)?)),
            None => (word, None),
        };
        // A colon before the last slash is a port's.
        let at = word.rfind('/').map_or(0, |slash| slash + 1);
        let (word, tag) = match word[at..].split_once(':') {
            Some((last, tag)) => (&word[..at + last.len()], Some(checked_tag(tag)?)),
            None => (word, None),
        };
        let (registry, path) = match word.split_once('/') {
            Some((host, path)) if is_host(host) => (checked_host(host)?, path),
            _ => (DOCKER_HUB, word),
        };
        let official = registry == DOCKER_HUB && !path.contains('/');
        checked_path(path)?;
        let repository = if official { format!("{OFFICIAL}/{path}") } else { path.to_owned() };
        let tag = tag.or((digest.is_none()).then_some("latest"));
        let own = |word: &str| word.to_owned();
        Ok(Self { registry: own(registry), repository, tag: tag.map(own), digest: digest.map(own) })
    }

    /// Host, and port where it was said.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path there.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which of its manifests is meant: a digest, else a tag.
    pub fn manifest(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Whether the first part of a name is a host's.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

fn checked_host(host: &str) -> Result<&str, String> {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let port = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    if !name.split('.').all(label) || !port {
        return Err(format!("`{host}` is no host of a registry; write HOST or HOST:PORT"));
    }
    Ok(if host == DOCKER_HUB_BEFORE { DOCKER_HUB } else { host })
}

/// Parts of lowercase letters and digits, divided by slashes; inside a part these are divided by a dot, one or two
/// underscores, or hyphens.
fn checked_path(path: &str) -> Result<(), String> {
    if path.len() > LONGEST_PATH {
        return Err(format!("the path of an image has at most {LONGEST_PATH} bytes, not {}", path.len()));
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let divides = |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-');
    let good = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|byte| plain(*byte))
            && bytes.last().is_some_and(|byte| plain(*byte))
            && bytes.split(|byte| plain(*byte)).all(divides)
    };
    match path.split('/').find(|part| !good(part)) {
        None => Ok(()),
        Some(part) if part.bytes().any(|byte| byte.is_ascii_uppercase()) => {
            Err(format!("`{part}` has uppercase letters, which no path of an image has"))
        }
        Some(part) => Err(format!(
            "`{part}` is no part of an image's path: lowercase letters and digits, divided by . _ or -"
        )),
    }
}

fn checked_tag(tag: &str) -> Result<&str, String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inner = |byte: u8| word(byte) || matches!(byte, b'.' | b'-');
    let good = tag.bytes().next().is_some_and(word) && tag.bytes().all(inner) && tag.len() <= LONGEST_TAG;
    if good {
        Ok(tag)
    } else {
        Err(format!("`{tag}` is no tag: 1 to {LONGEST_TAG} letters, digits, _ . and -"))
    }
}

fn checked_digest(digest: &str) -> Result<&str, String> {
    let known = |(name, digits): &(&str, usize)| {
        let hex = digest.strip_prefix(name).and_then(|rest| rest.strip_prefix(':'));
        hex.is_some_and(|hex| hex.len() == *digits && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    if DIGESTS.iter().any(known) {
        return Ok(digest);
    }
    Err(format!(
        "`{digest}` is no digest: sha256: and 64 hexadecimal digits, sha384: and 96, or sha512: and 128"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_docker_reads_them() {
        let hex = "0123456789abcdef".repeat(4);
        for (word, whole) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("index.docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("docker.io/a/b/c", "docker.io/a/b/c:latest"),
            ("a.example:5000", "docker.io/library/a.example:5000"),
            ("a.example:5000/x", "a.example:5000/x:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:1/x:2", "localhost:1/x:2"),
            ("R-1.example/a__b/c.d-e---f:T_1.x-y", "R-1.example/a__b/c.d-e---f:T_1.x-y"),
        ] {
            assert_eq!(Reference::parse(word).map(|r| r.to_string()), Ok(whole.to_owned()), "{word}");
        }
        let pinned = Reference::parse(&format!("a.example/x:1@sha256:{hex}")).unwrap();
        assert_eq!((pinned.registry(), pinned.repository()), ("a.example", "x"));
        assert_eq!(pinned.manifest(), format!("sha256:{hex}"));
        assert_eq!(Reference::parse("x").unwrap().manifest(), "latest");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        let tag = format!("x:{}", "t".repeat(129));
        for word in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "Busybox",
            "a/B",
            "a..b",
            "a___b",
            "_a",
            "a-",
            "a b",
            "ä",
            "x:",
            "x:-t",
            "x:a:b",
            "x@",
            "x@sha256:12",
            "x@md5:d41d8cd98f00b204e9800998ecf8427e",
            "-a.example/x",
            "a..example/x",
            "a.example:/x",
            "a.example:x1/y",
            "../x",
            "./x",
            "a/../b",
            &long,
            &tag,
        ] {
            assert!(Reference::parse(word).is_err(), "{word}");
        }
    }
}
