//! One .deb, read into memory and spool (deb(5)): `debian-binary`, `control.tar.*`, `data.tar.*`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

use md5::{Digest as _, Md5};

use super::control::Control;
use super::{Cache, DebianError};
use crate::archive::{Ar, ArchiveError, Entry, EntryKind, TarReader, decompress};
use crate::content::{Content, Spool};
use crate::lock::{PackageLock, hex};
use crate::tree::{Meta, Time, shown};

/// Largest member of a control archive; the largest seen is a few hundred KiB.
const CONTROL_MAX: u64 = 16 << 20;

/// A package with everything that unpacking needs, its contents in the spool.
pub struct Package {
    pub name: String,
    pub control: Control,
    /// Control members other than `control`, by name: maintainer scripts, md5sums, triggers.
    pub info: Vec<(String, Meta, Vec<u8>)>,
    pub entries: Vec<(Entry, Option<Content>)>,
    /// MD5 of each configuration file, as dpkg records it.
    pub conffiles: Vec<(Vec<u8>, String)>,
}

impl Package {
    /// Reads the package from the cache.
    pub fn read(lock: &PackageLock, cache: &Cache, spool: &Spool) -> Result<Self, DebianError> {
        let file = cache.open_package(lock)?;
        Self::parse(file, spool, &lock.name).map_err(|e| match e {
            Problem::Archive(source) => DebianError::Archive { package: lock.name.clone(), source },
            Problem::What(what) => DebianError::Package { package: lock.name.clone(), what },
        })
    }

    fn parse(file: File, spool: &Spool, name: &str) -> Result<Self, Problem> {
        let mut ar = Ar::new(BufReader::with_capacity(256 * 1024, file))?;
        let mut package = None;
        while let Some(member) = ar.next_member()? {
            match member.as_str() {
                "debian-binary" => check_version(&mut ar)?,
                _ if member.starts_with("control.tar") => {
                    package = Some(Self::read_control(&mut ar, name)?);
                }
                _ if member.starts_with("data.tar") => {
                    let package = package.as_mut();
                    let package = package.ok_or("its data come before its control")?;
                    package.read_data(&mut ar, spool)?;
                }
                _ => {} // deb(5): members that begin with _ or follow are to be ignored
            }
        }
        Ok(package.ok_or("it has no control archive")?)
    }

    fn read_control(member: impl Read + Send, name: &str) -> Result<Self, Problem> {
        let mut tar = TarReader::new(decompress(member)?);
        let mut info = Vec::new();
        let mut control = None;
        while let Some(entry) = tar.next_entry()? {
            if entry.kind != EntryKind::File {
                continue;
            }
            if entry.size > CONTROL_MAX {
                return Err(Problem::What("a control member is larger than 16 MiB"));
            }
            let mut bytes = Vec::new();
            (&mut tar).take(entry.size).read_to_end(&mut bytes)?;
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let member = path.trim_start_matches("./").to_owned();
            match member.as_str() {
                "control" => control = Control::parse(&String::from_utf8_lossy(&bytes)),
                _ if member.contains('/') => {}
                _ => info.push((member, entry.meta, bytes)),
            }
        }
        let control = control.ok_or("it has no control file")?;
        if control.get("Package") != Some(name) {
            return Err(Problem::What("it is another package than its name says"));
        }
        let conffiles = info
            .iter()
            .filter(|(member, ..)| member == "conffiles")
            .flat_map(|(_, _, text)| text.split(|b| *b == b'\n'))
            // Lines with a flag before the path name files that are gone.
            .filter(|line| line.starts_with(b"/"))
            .map(|line| (line.trim_ascii_end().to_vec(), String::new()))
            .collect();
        Ok(Self { name: name.to_owned(), control, info, entries: Vec::new(), conffiles })
    }

    fn read_data(&mut self, member: impl Read + Send, spool: &Spool) -> Result<(), Problem> {
        let wanted: HashMap<Vec<u8>, usize> =
            self.conffiles.iter().enumerate().map(|(i, (path, _))| (path.clone(), i)).collect();
        let mut tar = TarReader::new(decompress(member)?);
        while let Some(entry) = tar.next_entry()? {
            let mut content = None;
            if entry.kind == EntryKind::File {
                let spooled = spool
                    .add(&mut tar, entry.size)
                    .map_err(|source| ArchiveError::Spool { path: shown(&entry.path), source })?;
                if let Some(at) = wanted.get(&listed_path(&entry.path)) {
                    self.conffiles[*at].1 = md5(&spooled)?;
                }
                content = Some(spooled);
            }
            self.entries.push((entry, content));
        }
        self.conffiles.retain(|(_, md5)| !md5.is_empty());
        Ok(())
    }

    /// dpkg's name for the package's files below `info/`.
    pub fn info_name(&self) -> String {
        match (self.control.get("Multi-Arch"), self.control.get("Architecture")) {
            (Some("same"), Some(arch)) => format!("{}:{arch}", self.name),
            _ => self.name.clone(),
        }
    }

    /// A control member's bytes.
    pub fn info(&self, member: &str) -> Option<&[u8]> {
        let found = self.info.iter().find(|(name, ..)| name == member);
        found.map(|(_, _, bytes)| &bytes[..])
    }

    /// Whether its `preinst` may move other packages' files out of the way (dpkg-divert(1)).
    pub fn diverts(&self) -> bool {
        let needle = b"dpkg-divert";
        self.info("preinst").is_some_and(|text| text.windows(needle.len()).any(|part| part == needle))
    }

    /// The newest time in the package.
    pub fn newest(&self) -> Time {
        let times = self.entries.iter().map(|(entry, _)| entry.meta.mtime);
        times.max().unwrap_or_default()
    }
}

/// A path as dpkg lists it: `/etc/x` for `./etc/x`, `/.` for the root.
pub fn listed_path(path: &[u8]) -> Vec<u8> {
    let mut listed = Vec::new();
    for name in path.split(|b| *b == b'/') {
        if !name.is_empty() && name != b"." {
            listed.push(b'/');
            listed.extend_from_slice(name);
        }
    }
    match listed.is_empty() {
        true => b"/.".to_vec(),
        false => listed,
    }
}

fn check_version(member: &mut impl Read) -> Result<(), Problem> {
    let mut text = String::new();
    member.take(64).read_to_string(&mut text)?;
    match text.starts_with("2.") {
        true => Ok(()),
        false => Err(Problem::What("its format is not version 2")),
    }
}

fn md5(content: &Content) -> Result<String, Problem> {
    let mut hasher = Md5::new();
    std::io::copy(&mut content.reader(), &mut hasher)?;
    Ok(hex(&hasher.finalize()))
}

enum Problem {
    Archive(ArchiveError),
    What(&'static str),
}

impl From<ArchiveError> for Problem {
    fn from(e: ArchiveError) -> Self {
        Self::Archive(e)
    }
}

impl From<std::io::Error> for Problem {
    fn from(e: std::io::Error) -> Self {
        Self::Archive(e.into())
    }
}

impl From<&'static str> for Problem {
    fn from(what: &'static str) -> Self {
        Self::What(what)
    }
}
