//! The snapshots that a file holds: which there are, and one of them alone.
//!
//! Problem: a file may hold several frozen runs, on one root image or on several, and everything
//! that restores knows one. Strategy: each snapshot's sections have its number as their instance;
//! its info section says its name and which root image it lies on; [`select`] gives the file as it
//! would be with that snapshot alone. Invariants: instance 0 is the default to resume, the last
//! of the definition; the others count from 1 in the definition's order. A snapshot without info
//! is called [`UNNAMED`] and lies on root image 0 with its service running.
//! Next: `instance/media.rs`.

use artifact::{MachineFile, MachineFileWriter, SectionHead, SectionKind};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Version of the info section: a postcard [`SnapshotInfo`].
const INFO_VERSION: u32 = 1;
/// Most bytes of an info section.
const INFO_CAP: u64 = 4096;
/// The name of a snapshot that has none: the point at which machines freeze unless told otherwise.
pub const UNNAMED: &str = "ready";

/// What a snapshot is, beside its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Unique in its file; a word as instances have them.
    pub name: String,
    /// Instance of the root image section that its disk lies on.
    pub root: u32,
    /// The build step, counted from 1, after which it was made: the service was not started then.
    /// `None`: the service runs in it.
    pub after_step: Option<u32>,
}

impl SnapshotInfo {
    /// A snapshot on root image 0.
    pub fn new(name: &str, after_step: Option<u32>) -> Self {
        Self { name: name.to_owned(), root: 0, after_step }
    }

    /// Writes it as the info of snapshot number `instance`.
    ///
    /// # Errors
    /// The file's.
    pub fn write(&self, writer: &mut MachineFileWriter, instance: u32) -> Result<(), Error> {
        let bytes = postcard::to_stdvec(self)
            .map_err(|e| Error::Malformed { what: "snapshot info", why: e.to_string() })?;
        let head = SectionHead::new(SectionKind::SnapshotInfo, INFO_VERSION).instance(instance);
        Ok(writer.add_bytes(head, &bytes)?)
    }
}

/// One of a file's snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Instance of its sections; 0 is the default to resume.
    pub instance: u32,
    pub info: SnapshotInfo,
}

/// All snapshots of a file, in the order of the definition: the default is the last.
///
/// # Errors
/// [`Error::Version`], [`Error::Malformed`]; the file's.
pub fn points(file: &MachineFile) -> Result<Vec<Point>, Error> {
    let of_kind = |kind: SectionKind| file.sections().iter().filter(move |s| s.kind() == Some(kind));
    let mut instances: Vec<u32> = of_kind(SectionKind::CpuState).map(|s| s.instance).collect();
    instances.sort_unstable_by_key(|instance| (*instance == 0, *instance));
    let mut found: Vec<Point> = Vec::with_capacity(instances.len());
    for instance in instances {
        let info = read_info(file, instance)?;
        if found.iter().any(|other| other.info.name == info.name) {
            let why = format!("two snapshots are called `{}`", info.name);
            return Err(Error::Malformed { what: "snapshot info", why });
        }
        found.push(Point { instance, info });
    }
    Ok(found)
}

fn read_info(file: &MachineFile, instance: u32) -> Result<SnapshotInfo, Error> {
    let what = "snapshot info";
    let Some(section) = file.section_instance(SectionKind::SnapshotInfo, instance) else {
        return Ok(SnapshotInfo::new(UNNAMED, None));
    };
    if section.version != INFO_VERSION {
        return Err(Error::Version { what, found: section.version, reads: INFO_VERSION });
    }
    let bytes = file.read_section(section, INFO_CAP)?;
    let info: SnapshotInfo =
        postcard::from_bytes(&bytes).map_err(|e| Error::Malformed { what, why: e.to_string() })?;
    if !spec::valid_name(&info.name) {
        return Err(Error::Malformed { what, why: "its name is no name".into() });
    }
    Ok(info)
}

/// The snapshot called `name`, or the default to resume.
///
/// # Errors
/// [`Error::NoSnapshot`], as [`points`].
pub fn find(file: &MachineFile, name: Option<&str>) -> Result<Point, Error> {
    let found = match name {
        // The usual way, at every resume: one small section, or none, is read.
        None if file.is_snapshot() => return Ok(Point { instance: 0, info: read_info(file, 0)? }),
        None => None,
        Some(name) => points(file)?.into_iter().find(|point| point.info.name == name),
    };
    found.ok_or_else(|| {
        let names = points(file).unwrap_or_default();
        let names: Vec<&str> = names.iter().map(|point| point.info.name.as_str()).collect();
        let there = match names.is_empty() {
            true => "the file is a base and has none".to_owned(),
            false => format!("the file has {}", names.join(", ")),
        };
        let name = name.unwrap_or("to resume").to_owned();
        Error::NoSnapshot { name, there }
    })
}

/// The file with that snapshot alone, as instance 0.
pub fn select(file: MachineFile, point: &Point) -> MachineFile {
    // Nothing to do where it would change nothing: files with one snapshot.
    match (point.instance, point.info.root) {
        (0, 0) => file,
        (instance, root) => file.focus(instance, root),
    }
}
