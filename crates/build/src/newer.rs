//! What a machine file was made of, compared with what there is now: packages, the container image, and the guest
//! that smolvm brings. Nothing is built or transferred for it.

use std::path::Path;

use image::debian::{self, PackageSpec};
use image::oci::{Image, ImageName, OciOptions};
use image::{PackageLock, SourceKind};
use serde::Serialize;
use spec::Smolfile;

use crate::error::Error;
use crate::lock::Lock;
use crate::root::ARCH;

/// Digits of a digest that people are shown.
const SHORT: usize = 12;

/// A part of a machine that there is another of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// `package`, `image`, `kernel`, `agent`, `busybox`.
    pub kind: &'static str,
    /// The package's or image's; the kind where there is one of it only.
    pub name: String,
    /// What the machine has; none for what is new in it.
    pub have: Option<String>,
    /// What there is; none for what is gone.
    pub now: Option<String>,
}

impl Part {
    fn new(kind: &'static str, name: &str, have: &str, now: &str) -> Self {
        let (have, now) = (Some(have.to_owned()), Some(now.to_owned()));
        Self { kind, name: name.to_owned(), have, now }
    }
}

/// The guest's own parts, where this smolvm brings later ones. Of a file that a later smolvm made, none.
pub fn guest_parts(lock: &Lock) -> Vec<Part> {
    let now = Lock::new(String::new());
    match is_later(release(lock), release(&now)) {
        true => Vec::new(),
        false => guest_changes(lock, &now),
    }
}

fn release(lock: &Lock) -> &str {
    lock.guest.get("kernel_release").map_or("", String::as_str)
}

/// Whether kernel release `a` (`6.12.117-smolvm`) is later than `b`.
fn is_later(a: &str, b: &str) -> bool {
    let numbers = |text: &str| -> Vec<u64> {
        let plain = text.split('-').next().unwrap_or_default();
        plain.split('.').map_while(|part| part.parse().ok()).collect()
    };
    numbers(a) > numbers(b)
}

fn guest_changes(old: &Lock, new: &Lock) -> Vec<Part> {
    let digest = |lock: &Lock, key: &str| lock.guest.get(key).cloned().unwrap_or_default();
    let differs = |key: &str| digest(old, key) != digest(new, key);
    let short = |text: String| text.get(..SHORT).unwrap_or(&text).to_owned();
    let mut parts = Vec::new();
    // A kernel that the definition brought is not ours to compare.
    let ours = old.kernel.is_none() && new.kernel.is_none();
    if ours && differs("vmlinux_blake3") {
        // Two builds of one release are told apart by what they are.
        let named = |lock: &Lock| match release(old) == release(new) {
            true => format!("{} ({})", release(lock), short(digest(lock, "vmlinux_blake3"))),
            false => release(lock).to_owned(),
        };
        parts.push(Part::new("kernel", "kernel", &named(old), &named(new)));
    }
    let built_in = |lock: &Lock| lock.sources.iter().any(|source| source.kind == SourceKind::BuiltIn);
    for (key, name, concerned) in
        [("agent_blake3", "agent", true), ("busybox_blake3", "busybox", built_in(old) || built_in(new))]
    {
        if concerned && differs(key) {
            parts.push(Part::new(name, name, &short(digest(old, key)), &short(digest(new, key))));
        }
    }
    parts
}

/// Packages of which this system's lists have a newer version than the lock, within what the definition asks for.
///
/// # Errors
/// [`Error::Debian`]: apt is not there or knows nothing.
pub fn package_parts(lock: &Lock, definition: Option<&Smolfile>, cache: &Path) -> Result<Vec<Part>, Error> {
    if lock.packages.is_empty() {
        return Ok(Vec::new());
    }
    let words = definition.and_then(|file| file.root.packages.as_deref()).unwrap_or_default();
    let wanted: Vec<PackageSpec> =
        words.iter().map(|word| PackageSpec::parse(word)).collect::<Result<_, _>>()?;
    let offers = debian::offers(&lock.packages, ARCH, &debian::Cache::open(&cache.join("debian"))?)?;
    let newer = |package: &PackageLock| {
        let wanted = wanted.iter().find(|spec| spec.name == package.name);
        let now = offers.get(&package.name)?.newer(&package.version, wanted)?;
        Some(Part::new("package", &package.name, &package.version, now))
    };
    Ok(lock.packages.iter().filter_map(newer).collect())
}

/// The container image, where its name stands for another manifest now than the lock's. A registry is asked for
/// the manifest, and for the configuration of one that was not seen before.
///
/// # Errors
/// [`Error::Container`]: the image's.
pub fn image_part(lock: &Lock, name: &ImageName, options: &OciOptions) -> Result<Option<Part>, Error> {
    let Some(locked) = &lock.image else { return Ok(None) };
    let image = Image::open(name, options, None)?;
    let other = image.digest() != locked.manifest;
    Ok(other
        .then(|| Part::new("image", &name.to_string(), &digits(&locked.manifest), &digits(image.digest()))))
}

/// The beginning of a digest that is to be told from others.
fn digits(digest: &str) -> String {
    let end = digest.find(':').map_or(SHORT, |at| at + 1 + SHORT);
    digest.get(..end).unwrap_or(digest).to_owned()
}

/// What is different in a machine that was built again.
pub fn changes(old: &Lock, new: &Lock) -> Vec<Part> {
    let mut parts = guest_changes(old, new);
    let named =
        |lock: &Lock| lock.kernel.as_ref().map(|own| format!("{} ({})", own.release, digits(&own.blake3)));
    let (have, now) = (named(old), named(new));
    if have != now {
        let part = Part { kind: "kernel", name: "kernel".into(), have, now };
        parts.push(part);
    }
    if let (Some(a), Some(b)) = (&old.image, &new.image)
        && a.manifest != b.manifest
    {
        parts.push(Part::new("image", "image", &digits(&a.manifest), &digits(&b.manifest)));
    }
    let version = |lock: &Lock, name: &str| {
        lock.packages.iter().find(|package| package.name == name).map(|package| package.version.clone())
    };
    let mut names: Vec<&str> = old.packages.iter().chain(&new.packages).map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (have, now) = (version(old, name), version(new, name));
        if have != now {
            parts.push(Part { kind: "package", name: name.to_owned(), have, now });
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_guest(pairs: &[(&str, &str)]) -> Lock {
        let mut lock = Lock::new(String::new());
        pairs.iter().for_each(|(key, value)| drop(lock.guest.insert((*key).into(), (*value).into())));
        lock
    }

    #[test]
    fn only_a_later_guest_makes_a_file_old() {
        let this = Lock::new(String::new());
        assert_eq!(guest_parts(&this), []);
        let kinds = |lock: &Lock| guest_parts(lock).iter().map(|part| part.kind).collect::<Vec<_>>();
        let older = with_guest(&[("kernel_release", "6.12.3-smolvm"), ("vmlinux_blake3", "aa")]);
        assert_eq!(kinds(&older), ["kernel"]);
        let later = with_guest(&[("kernel_release", "6.13.1-smolvm"), ("vmlinux_blake3", "aa")]);
        assert_eq!(kinds(&later), [""; 0]);
        assert!(is_later("6.12.117-smolvm", "6.12.30-smolvm"));
        let agent = with_guest(&[("agent_blake3", "aa"), ("busybox_blake3", "aa")]);
        assert_eq!(kinds(&agent), ["agent"], "no busybox of ours in it");
        let again = with_guest(&[("vmlinux_blake3", "0123456789abcdef")]);
        let parts = guest_parts(&again);
        assert!(parts[0].have.as_deref().is_some_and(|have| have.ends_with("(0123456789ab)")), "{parts:?}");
    }

    #[test]
    fn changes_name_what_came_went_and_moved() {
        let package = |name: &str, version: &str| PackageLock {
            name: name.into(),
            version: version.into(),
            arch: "all".into(),
            sha256: "0".repeat(64),
            size: 1,
        };
        let with = |packages: Vec<PackageLock>| Lock { packages, ..Lock::new(String::new()) };
        let old = with(vec![package("same", "1"), package("moved", "1"), package("gone", "1")]);
        let new = with(vec![package("same", "1"), package("moved", "2"), package("new", "1")]);
        let told: Vec<_> =
            changes(&old, &new).into_iter().map(|part| (part.name, part.have, part.now)).collect();
        let some = |text: &str| Some(text.to_owned());
        let wanted = [
            ("gone".into(), some("1"), None),
            ("moved".into(), some("1"), some("2")),
            ("new".into(), None, some("1")),
        ];
        assert_eq!(told, wanted);
        assert_eq!(changes(&old, &old), []);
    }
}
