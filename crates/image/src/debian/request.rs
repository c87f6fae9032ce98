//! What the definition asks for.

use super::DebianError;
use crate::lock::PackageLock;

/// A package and perhaps a version, which may end in or contain `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageSpec {
    pub name: String,
    pub version: Option<String>,
}

/// A root made of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub packages: Vec<PackageSpec>,
    /// Debian's name of the guest's architecture: `amd64`.
    pub arch: String,
}

impl PackageSpec {
    /// Reads `name` or `name=version`.
    ///
    /// # Errors
    /// [`DebianError::Spec`] for what could mean something else to apt: options, patterns,
    /// suffixes, paths.
    pub fn parse(spec: &str) -> Result<Self, DebianError> {
        let (name, version) = match spec.split_once('=') {
            Some((name, version)) => (name, Some(version)),
            None => (spec, None),
        };
        let refuse = |why| Err(DebianError::Spec { spec: spec.to_owned(), why });
        // Debian Policy 5.6.7: names; 5.6.12: versions.
        let of = |text: &str, more: &str| {
            text.bytes().all(|b| b.is_ascii_alphanumeric() || more.as_bytes().contains(&b))
        };
        if name.len() < 2 || !name.as_bytes()[0].is_ascii_alphanumeric() {
            return refuse("a name has two characters at least and begins with a letter or digit");
        }
        if !of(name, "+-.") || name.bytes().any(|b| b.is_ascii_uppercase()) {
            return refuse("a name consists of a-z, 0-9, + - and .");
        }
        if name.ends_with('-') {
            return refuse("a name does not end in -");
        }
        match version {
            Some("") => return refuse("the version is empty"),
            Some(version) if !of(version, ".+~:-*") => {
                return refuse("a version consists of letters, digits, . + ~ : - and * for anything");
            }
            _ => {}
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }

    /// Whether a version is one that this asks for.
    pub fn allows(&self, version: &str) -> bool {
        self.version.as_ref().is_none_or(|wanted| super::version::matches(wanted, version))
    }

    /// As apt takes it.
    pub(super) fn argument(&self) -> String {
        match &self.version {
            Some(version) => format!("{}={version}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Whether a lock's words can be passed to apt and to a shell: a lock is a file that anybody may
/// have written.
pub(super) fn check_lock(lock: &PackageLock) -> Result<(), DebianError> {
    let spec = format!("{}={}", lock.name, lock.version);
    PackageSpec::parse(&spec)?;
    let refuse = |why| Err(DebianError::Spec { spec, why });
    let of = |text: &str, more: fn(u8) -> bool| !text.is_empty() && text.bytes().all(more);
    if lock.version.contains('*') {
        return refuse("a locked version is exact");
    }
    if !of(&lock.arch, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return refuse("its architecture is not a name");
    }
    if lock.sha256.len() != 64 || !of(&lock.sha256, |b| b.is_ascii_hexdigit()) {
        return refuse("its SHA-256 is not 64 hexadecimal digits");
    }
    Ok(())
}

impl Request {
    /// Packages by their specs, for one architecture.
    ///
    /// # Errors
    /// [`DebianError::Spec`] for the first one that is none.
    pub fn new(specs: &[impl AsRef<str>], arch: &str) -> Result<Self, DebianError> {
        let packages =
            specs.iter().map(|spec| PackageSpec::parse(spec.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { packages, arch: arch.to_owned() })
    }
}
