//! dpkg's database for packages that are unpacked and not yet configured.
//!
//! Formats: deb-control(5), deb-triggers(5) and what dpkg 1.21 itself writes (`info/format` 1).
//! Configuration files are laid down under their final names with their MD5 in the status:
//! dpkg, when it configures, looks for `NAME.dpkg-new` and, finding none, keeps what is there
//! without asking.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::package::{Package, listed_path};
use crate::content::Content;
use crate::tree::{Item, Meta, OnSymlink, Time, Tree, TreeError};

const ADMIN: &str = "var/lib/dpkg";

/// Lays the database down in `tree`. `lost` are files that a later package took over: they are
/// not in the list of the package they came with.
pub fn write(
    tree: &mut Tree,
    packages: &[Package],
    lost: &[Vec<Vec<u8>>],
    time: Time,
) -> Result<(), TreeError> {
    let mut out = Database { tree, time };
    for dir in ["alternatives", "info", "parts", "triggers", "updates"] {
        out.dir(dir)?;
    }
    out.file("info/format", b"1\n".to_vec())?;
    for empty in ["available", "diversions", "statoverride", "triggers/Unincorp"] {
        out.file(empty, Vec::new())?;
    }
    let mut sorted: Vec<&Package> = packages.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let status: String = sorted.iter().map(|package| stanza(package)).collect();
    out.file("status", status.into_bytes())?;
    for (package, lost) in packages.iter().zip(lost) {
        out.package(package, lost)?;
    }
    out.triggers(&sorted)
}

struct Database<'a> {
    tree: &'a mut Tree,
    time: Time,
}

impl Database<'_> {
    fn dir(&mut self, name: &str) -> Result<(), TreeError> {
        let meta = self.meta(0o755);
        self.put(name, Item::Dir, meta)
    }

    fn file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), TreeError> {
        let meta = self.meta(0o644);
        self.put(name, Item::File(Content::bytes(bytes)), meta)
    }

    fn put(&mut self, name: &str, item: Item, meta: Meta) -> Result<(), TreeError> {
        let path = format!("{ADMIN}/{name}");
        self.tree.insert(path, item, meta, OnSymlink::Keep)?;
        Ok(())
    }

    fn meta(&self, mode: u16) -> Meta {
        Meta { mtime: self.time, ..Meta::root_owned(mode) }
    }

    fn package(&mut self, package: &Package, lost: &[Vec<u8>]) -> Result<(), TreeError> {
        let name = package.info_name();
        let mut list = Vec::new();
        for (entry, _) in &package.entries {
            let path = listed_path(&entry.path);
            if !lost.contains(&path) {
                list.extend_from_slice(&path);
                list.push(b'\n');
            }
        }
        self.file(&format!("info/{name}.list"), list)?;
        for (member, meta, bytes) in &package.info {
            let item = Item::File(Content::bytes(&bytes[..]));
            let meta = Meta { uid: 0, gid: 0, ..meta.clone() };
            self.put(&format!("info/{name}.{member}"), item, meta)?;
        }
        Ok(())
    }

    /// Who wants to know about which files and events.
    fn triggers(&mut self, packages: &[&Package]) -> Result<(), TreeError> {
        let mut files = String::new();
        let mut events: BTreeMap<String, String> = BTreeMap::new();
        for package in packages {
            let text = String::from_utf8_lossy(package.info("triggers").unwrap_or_default());
            for line in text.lines() {
                let mut words = line.split_whitespace();
                let (Some(verb), Some(what)) = (words.next(), words.next()) else {
                    continue;
                };
                let who = match verb {
                    "interest" | "interest-await" => package.info_name(),
                    "interest-noawait" => format!("{}/noawait", package.info_name()),
                    _ => continue,
                };
                if what.starts_with('/') {
                    let _ = writeln!(files, "{what} {who}"); // a String takes everything
                } else if what.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+.:_".contains(&b)) {
                    let _ = writeln!(events.entry(what.to_owned()).or_default(), "{who}");
                }
            }
        }
        self.file("triggers/File", files.into_bytes())?;
        for (event, who) in events {
            self.file(&format!("triggers/{event}"), who.into_bytes())?;
        }
        Ok(())
    }
}

/// A package's stanza in the status file.
fn stanza(package: &Package) -> String {
    let mut text = String::new();
    let mut put = |name: &str, value: &str| {
        let blank = if value.starts_with('\n') { "" } else { " " };
        let _ = writeln!(text, "{name}:{blank}{value}"); // a String takes everything
    };
    for (name, value) in &package.control.fields {
        if name.eq_ignore_ascii_case("Description") {
            put_conffiles(package, &mut put);
        }
        put(name, value);
        if name.eq_ignore_ascii_case("Package") {
            put("Status", "install ok unpacked");
        }
    }
    if package.control.get("Description").is_none() {
        put_conffiles(package, &mut put);
    }
    text.push('\n');
    text
}

fn put_conffiles(package: &Package, put: &mut impl FnMut(&str, &str)) {
    if package.conffiles.is_empty() {
        return;
    }
    let lines: String = package
        .conffiles
        .iter()
        .map(|(path, md5)| format!("\n {} {md5}", String::from_utf8_lossy(path)))
        .collect();
    put("Conffiles", &lines);
}
