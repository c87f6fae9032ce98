//! What this system's package lists offer for packages that a lock has.

use std::collections::BTreeMap;

use super::apt::Apt;
use super::request::check_lock;
use super::{Cache, DebianError, PackageSpec, version};
use crate::lock::PackageLock;

/// Names in one question to apt.
const AT_ONCE: usize = 500;

/// A package in the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// What apt would install, by the system's priorities; none when they forbid every version.
    pub candidate: Option<String>,
    /// Every version.
    pub versions: Vec<String>,
}

impl Offer {
    /// The version to have: the candidate, or of what `wanted` allows the newest.
    pub fn choice(&self, wanted: Option<&PackageSpec>) -> Option<&str> {
        let candidate = self.candidate.as_deref();
        match wanted.filter(|spec| spec.version.is_some()) {
            None => candidate,
            Some(spec) => {
                let allowed = self.versions.iter().map(String::as_str).filter(|version| spec.allows(version));
                candidate.filter(|c| spec.allows(c)).or_else(|| allowed.max_by(|a, b| version::compare(a, b)))
            }
        }
    }

    /// The version to have where it is newer than `has`.
    pub fn newer(&self, has: &str, wanted: Option<&PackageSpec>) -> Option<&str> {
        self.choice(wanted).filter(|choice| version::compare(choice, has).is_gt())
    }
}

/// What the lists have of these packages; what they do not know at all is not in the answer.
///
/// # Errors
/// [`DebianError`]: no apt, no lists, a lock whose words are none of a package's.
pub fn offers(
    packages: &[PackageLock],
    arch: &str,
    cache: &Cache,
) -> Result<BTreeMap<String, Offer>, DebianError> {
    packages.iter().try_for_each(check_lock)?;
    let apt = Apt::new(cache, arch)?;
    let mut found = BTreeMap::new();
    for some in packages.chunks(AT_ONCE) {
        let names = some.iter().map(|package| package.name.as_str());
        let arguments: Vec<&str> = ["policy", "--"].into_iter().chain(names).collect();
        read(&apt.stdout("apt-cache", &arguments)?, &mut found);
    }
    match found.is_empty() && !packages.is_empty() && !apt.has_lists() {
        true => Err(DebianError::NoLists),
        false => Ok(found),
    }
}

/// What `apt-cache policy` prints: `NAME:`, then indented `Candidate:` and a table whose lines of a version are
/// indented by five columns, or by ` *** `.
fn read(text: &str, found: &mut BTreeMap<String, Offer>) {
    let mut current: Option<&mut Offer> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            current = Some(found.entry(name.to_owned()).or_default());
            continue;
        }
        let Some(offer) = current.as_mut() else { continue };
        if let Some(candidate) = line.strip_prefix("  Candidate: ") {
            offer.candidate = (candidate != "(none)").then(|| candidate.to_owned());
        } else if let Some(row) = line.strip_prefix("     ").or_else(|| line.strip_prefix(" *** "))
            && !row.starts_with(' ')
        {
            offer.versions.extend(row.split(' ').next().map(str::to_owned));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
libc6:
  Installed: (none)
  Candidate: 2.36-9+deb12u14
  Version table:
     2.36-9+deb12u14 500
        500 http://mirror/debian bookworm/main amd64 Packages
 *** 2.36-9+deb12u7 500
        500 http://mirror/security bookworm-security/main amd64 Packages
        100 /var/lib/dpkg/status
virtual:
  Installed: (none)
  Candidate: (none)
  Version table:
";

    fn said() -> BTreeMap<String, Offer> {
        let mut found = BTreeMap::new();
        read(SAID, &mut found);
        found
    }

    #[test]
    fn candidates_and_versions_are_read() {
        let found = said();
        let libc = &found["libc6"];
        assert_eq!(libc.candidate.as_deref(), Some("2.36-9+deb12u14"));
        assert_eq!(libc.versions, ["2.36-9+deb12u14", "2.36-9+deb12u7"]);
        assert_eq!(found["virtual"], Offer::default());
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_pinned_package_is_as_new_as_its_pin_allows() {
        let libc = &said()["libc6"];
        let pin = |word: &str| PackageSpec::parse(word).unwrap();
        assert_eq!(libc.newer("2.36-9+deb12u9", None), Some("2.36-9+deb12u14"));
        assert_eq!(libc.newer("2.36-9+deb12u14", None), None);
        assert_eq!(libc.newer("2.37-1", None), None);
        let (old, any) = (pin("libc6=2.36-9+deb12u7"), pin("libc6=2.36*"));
        assert_eq!(libc.newer("2.36-9+deb12u7", Some(&old)), None);
        assert_eq!(libc.newer("2.36-9+deb12u7", Some(&any)), Some("2.36-9+deb12u14"));
        assert_eq!(libc.newer("2.36-9+deb12u7", Some(&pin("libc6=3*"))), None);
    }
}
