//! Opening a machine file: header and index are read and compared with the bytes present, nothing else.
//!
//! That costs two reads, whatever the size. Whether the sections' bytes are what the index says is
//! [`MachineFile::verify_all`]'s business (`verify.rs`), once for each file; small sections are checked each
//! time they are read.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::{Error, Problem, Result};
use crate::foreign::Foreign;
use crate::format::{Header, Index, MAGIC, PAGE_SIZE, Section};
use crate::hash::Digest;
use crate::kind::SectionKind;

/// How much of a foreign file's end is looked at.
const TAIL_LEN: u64 = 512;

/// A machine file that is open and whose header and index are right.
#[derive(Debug)]
pub struct MachineFile {
    file: File,
    path: PathBuf,
    len: u64,
    id: Digest,
    index: Index,
}

impl MachineFile {
    /// Opens the file at `path` for reading.
    pub fn open_path(path: &Path) -> Result<MachineFile> {
        MachineFile::open(open_quietly(path)?, path)
    }

    /// Reads header and index of `file`; `path` is for messages only.
    ///
    /// Fails with the [`Problem`] that names what the file is instead, where it is cut short, newer, or damaged.
    pub fn open(file: File, path: impl Into<PathBuf>) -> Result<MachineFile> {
        let path = path.into();
        match read_index(&file) {
            Ok((len, id, index)) => Ok(MachineFile { file, path, len, id, index }),
            Err(problem) => Err(problem.at(&path)),
        }
    }

    /// The same open file once more.
    pub fn again(&self) -> Result<MachineFile> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| Error::io(&self.path, "use it again", error))?;
        let (path, index) = (self.path.clone(), self.index.clone());
        Ok(MachineFile { file, path, len: self.len, id: self.id, index })
    }

    /// The file's identity: BLAKE3 of its index, and by that of every byte of it.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// The id of the file whose sections this one builds on, if it does not stand alone.
    pub fn parent(&self) -> Option<Digest> {
        self.index.parent
    }

    /// The length of the file in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: there are header and index at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file, for mapping: sections start at page boundaries.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every section, in the order of their offsets; ones of unknown kind among them.
    pub fn sections(&self) -> &[Section] {
        &self.index.sections
    }

    /// The first section (instance 0) of a kind.
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        self.section_instance(kind, 0)
    }

    /// One of several sections of a kind.
    pub fn section_instance(&self, kind: SectionKind, instance: u32) -> Option<&Section> {
        let wanted = (kind.number(), instance);
        self.sections().iter().find(|s| (s.kind_number, s.instance) == wanted)
    }

    /// A section that has to be there.
    pub fn require(&self, kind: SectionKind, instance: u32) -> Result<&Section> {
        self.section_instance(kind, instance).ok_or_else(|| {
            let section = match instance {
                0 => kind.label().to_owned(),
                _ => format!("{kind} {instance}"),
            };
            self.error(Problem::Missing { section })
        })
    }

    /// Whether a frozen run is in it, beside the base.
    pub fn is_snapshot(&self) -> bool {
        self.section(SectionKind::CpuState).is_some()
    }

    /// The file as it would be with one of its snapshots alone: the state sections with instance `snapshot` and
    /// the root image `root` become instance 0, those of other snapshots are not seen any more.
    ///
    /// For readers only, once the file was verified: [`MachineFile::verify_all`] of what this gives passes over
    /// what is not seen.
    pub fn focus(mut self, snapshot: u32, root: u32) -> MachineFile {
        self.index.sections.retain_mut(|section| {
            let seen = match section.kind() {
                Some(SectionKind::RootImage) => section.instance == root,
                Some(kind) if kind.is_state() => section.instance == snapshot,
                _ => return true,
            };
            section.instance = 0;
            seen
        });
        self
    }

    /// A section's bytes, of which there may be `cap`, compared with their digest.
    pub fn read_section(&self, section: &Section, cap: u64) -> Result<Vec<u8>> {
        let Section { name, offset, len, .. } = section;
        if *len > cap || *len > self.len {
            let section = name.clone();
            return Err(self.error(Problem::TooBig { section, len: *len, cap }));
        }
        let mut bytes = vec![0; *len as usize];
        let read = self.file.read_exact_at(&mut bytes, *offset);
        read.map_err(|error| self.read_error(section, error))?;
        if Digest::of(&bytes) != section.digest {
            return Err(self.digest_differs(section));
        }
        Ok(bytes)
    }

    /// A section that has to be there and is small: [`MachineFile::require`], [`MachineFile::read_section`].
    pub fn read_required(&self, kind: SectionKind, instance: u32, cap: u64) -> Result<Vec<u8>> {
        self.read_section(self.require(kind, instance)?, cap)
    }

    /// A problem with this file.
    pub fn error(&self, problem: Problem) -> Error {
        problem.at(&self.path)
    }

    pub(crate) fn digest_differs(&self, section: &Section) -> Error {
        let place = format!("section {}", section.name);
        self.error(Problem::damaged(place, section.offset, "its digest is not the one in the index"))
    }

    pub(crate) fn read_error(&self, section: &Section, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let actual = self.file.metadata().map_or(0, |meta| meta.len());
            return self.error(Problem::Truncated { expected: self.len, actual });
        }
        self.error(Problem::io(format!("read section {}", section.name), error))
    }
}

/// Opens without waiting for the other end of a pipe.
pub fn open_quietly(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| Error::io(path, "open it", error))
}

/// Header and index, compared with the bytes present.
fn read_index(file: &File) -> std::result::Result<(u64, Digest, Index), Problem> {
    let meta = file.metadata().map_err(|error| Problem::io("ask for its length", error))?;
    if !meta.is_file() {
        let what = if meta.is_dir() { Foreign::Directory } else { Foreign::NotRegular };
        return Err(Problem::Foreign { what });
    }
    let len = meta.len();
    let header = read_header(file, len)?;
    let expected = header.file_len().unwrap_or(u64::MAX);
    if len < expected {
        return Err(Problem::Truncated { expected, actual: len });
    }
    if len > expected {
        let why = format!("{} bytes follow what belongs to it", len - expected);
        return Err(Problem::damaged("its end", expected, why));
    }
    let at = header.index_offset;
    if header.index_len > Index::MAX_LEN {
        let why = format!("its {} bytes are more than an index can have", header.index_len);
        return Err(Problem::damaged("the index", at, why));
    }
    let bytes = read_at(file, at, len - at, "read the index")?;
    let (index, padding) = bytes
        .split_at_checked(header.index_len as usize)
        .ok_or_else(|| Problem::damaged("the index", at, "it ends beyond the file"))?;
    if let Some(wrong) = padding.iter().position(|&byte| byte != 0) {
        let offset = at + header.index_len + wrong as u64;
        return Err(Problem::damaged("the padding", offset, "bytes that must be zero are not"));
    }
    if Digest::of(index) != header.id {
        let why = "its digest is not the one in the header";
        return Err(Problem::damaged("the index", at, why));
    }
    Ok((len, header.id, Index::parse(index, at, len)?))
}

/// The header, or what the file is instead.
fn read_header(file: &File, len: u64) -> std::result::Result<Header, Problem> {
    let head = read_at(file, 0, len.min(PAGE_SIZE), "read the header")?;
    let name = MAGIC.get(1..7).unwrap_or_default();
    if head.starts_with(&MAGIC) || (!head.is_empty() && MAGIC.starts_with(&head)) {
        return match head.first_chunk() {
            Some(page) => Header::parse(page),
            None => Err(Problem::Truncated { expected: PAGE_SIZE, actual: len }),
        };
    }
    if head.get(1..).is_some_and(|rest| rest.starts_with(name)) {
        let why = "the magic was changed, as a transfer in text mode does";
        return Err(Problem::damaged("the header", 0, why));
    }
    let tail_len = len.min(TAIL_LEN);
    let tail = read_at(file, len - tail_len, tail_len, "read its end")?;
    Err(Problem::Foreign { what: Foreign::recognise(&head, &tail, len) })
}

/// `len` bytes, of which the caller knows that they are few.
fn read_at(file: &File, at: u64, len: u64, attempt: &str) -> std::result::Result<Vec<u8>, Problem> {
    let mut bytes = vec![0; len as usize];
    match file.read_exact_at(&mut bytes, at) {
        Ok(()) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let actual = file.metadata().map_or(0, |meta| meta.len());
            Err(Problem::Truncated { expected: at.saturating_add(len), actual })
        }
        Err(error) => Err(Problem::io(attempt, error)),
    }
}
