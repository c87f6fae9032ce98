//! Writing a machine file: sections, then the index, then the header, then its name (`temp.rs`).
//!
//! Digests are of the bytes that were handed to the file, in the buffer from which they were written, or, where
//! the kernel copied, of what was then read back from the file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::copy::copy_range;
use crate::early::{Early, reserve};
use crate::error::{Error, Problem, Result};
use crate::format::{Header, Index, MAX_SECTIONS, PAGE_SIZE, Section, SectionFlags, check_name, page_up};
use crate::hash::{Digest, Hasher, digest_parallel, usual_threads};
use crate::kind::SectionKind;
use crate::reader::MachineFile;
use crate::space;
use crate::temp::{TempFile, TempStyle, clean_leftovers, sync_dir};

/// How much a streamed section gathers before it writes.
const BUFFER: usize = 256 * 1024;

/// How a file is written.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// The file's length if it is known, or a guess from above: so much has to be free.
    pub expected_len: Option<u64>,
    /// Whether [`MachineFileWriter::finish`] waits until the file is on the disk.
    pub durable: bool,
    /// Permission bits before the umask. A frozen memory may hold secrets: the owner's only.
    pub mode: u32,
    /// How the unfinished file is kept.
    pub temp: TempStyle,
}

impl Default for WriterOptions {
    fn default() -> WriterOptions {
        WriterOptions { expected_len: None, durable: true, mode: 0o600, temp: TempStyle::Auto }
    }
}

/// What the index says of a section beside its place and digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionHead {
    /// The number of the kind.
    pub kind_number: u32,
    /// Which of several sections of the kind.
    pub instance: u32,
    /// Whether a reader that doesn't know the kind may pass over it.
    pub flags: SectionFlags,
    /// The version of the content's encoding.
    pub version: u32,
    /// 1 to 32 of `a-z 0-9 . _ -`.
    pub name: String,
}

impl SectionHead {
    /// The first section of a kind, with the kind's name; `version` is that of the content's encoding.
    pub fn new(kind: SectionKind, version: u32) -> SectionHead {
        let (kind_number, name) = (kind.number(), kind.label().to_owned());
        SectionHead { kind_number, instance: 0, flags: SectionFlags::NONE, version, name }
    }

    /// One of several sections of its kind. The number is in the name, too, but for the first.
    pub fn instance(self, instance: u32) -> SectionHead {
        let name = match (instance, SectionKind::from_number(self.kind_number)) {
            (n, Some(kind)) if n > 0 => format!("{kind}.{n}"),
            _ => self.name,
        };
        SectionHead { instance, name, ..self }
    }

    /// With a name of its own.
    pub fn named(self, name: &str) -> SectionHead {
        SectionHead { name: name.to_owned(), ..self }
    }

    /// As in another file.
    pub fn like(section: &Section) -> SectionHead {
        let Section { kind_number, instance, flags, version, ref name, .. } = *section;
        SectionHead { kind_number, instance, flags, version, name: name.clone() }
    }
}

/// What is known of the bytes that [`MachineFileWriter::copy_section`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCheck {
    /// Nothing: the copy is read and compared with the source's digest.
    Rehash,
    /// They were verified (the source is in the store): the digest is taken over, nothing is read.
    Trust,
}

/// A file that was written.
#[derive(Debug)]
pub struct Written {
    /// Its identity.
    pub id: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// The file itself, still open.
    pub file: File,
}

/// A machine file being written. Dropped before [`MachineFileWriter::finish`], it leaves nothing behind, and
/// what had its name stays.
pub struct MachineFileWriter {
    temp: TempFile,
    path: PathBuf,
    dir: PathBuf,
    index: Index,
    /// Where the next section goes.
    at: u64,
    /// A section was given up half-way: its bytes lie where zeros belong.
    broken: bool,
    durable: bool,
}

impl MachineFileWriter {
    /// Starts a file that will be called `path`; a file of that name stays until the new one is whole.
    pub fn create(path: &Path) -> Result<MachineFileWriter> {
        MachineFileWriter::create_with(path, WriterOptions::default())
    }

    /// [`MachineFileWriter::create`] with options. Leftovers of dead writers in the directory are removed.
    pub fn create_with(path: &Path, options: WriterOptions) -> Result<MachineFileWriter> {
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if path.file_name().is_none() || path.is_dir() {
            let error = io::ErrorKind::IsADirectory.into();
            return Err(Error::io(path, "write a file of that name", error));
        }
        // Best effort: a directory that cannot be read can be written all the same.
        let _ = clean_leftovers(&dir);
        if let Some(needed) = options.expected_len {
            space::check(path, &dir, needed)?;
        }
        let attempt = || format!("make a file in {}", dir.display());
        let temp = TempFile::create_in(&dir, options.mode, options.temp)
            .map_err(|error| Error::io(path, attempt(), error))?;
        Ok(MachineFileWriter {
            temp,
            path: path.to_owned(),
            dir,
            index: Index::default(),
            at: PAGE_SIZE,
            broken: false,
            durable: options.durable,
        })
    }

    /// Refuses to go on when `bytes` more do not fit.
    pub fn expect(&self, bytes: u64) -> Result<()> {
        space::check(&self.path, &self.dir, bytes)
    }

    /// [`MachineFileWriter::expect`] for what is copied of other files: where that may cost nothing it is let through.
    pub fn expect_copies(&self, bytes: u64) -> Result<()> {
        if space::may_share(&self.dir) { Ok(()) } else { self.expect(bytes) }
    }

    /// The file builds on the sections of another one, its parent, whose id this is.
    pub fn set_parent(&mut self, parent: Digest) {
        self.index.parent = Some(parent);
    }

    /// Starts a section that is streamed; it counts once [`SectionWriter::end`] was called.
    pub fn begin(&mut self, head: SectionHead) -> Result<SectionWriter<'_>> {
        self.check_head(&head)?;
        let buffer = Vec::with_capacity(BUFFER);
        let at = self.at;
        let early = Early::new(self.durable, at);
        self.broken = true;
        Ok(SectionWriter { writer: self, head, hasher: Hasher::new(), buffer, at, early })
    }

    /// A whole section from memory.
    pub fn add_bytes(&mut self, head: SectionHead, bytes: &[u8]) -> Result<()> {
        self.check_head(&head)?;
        self.broken = true;
        let written = self.temp.file().write_all_at(bytes, self.at);
        written.map_err(|error| self.write_error(&head, error))?;
        self.push(head, bytes.len() as u64, Digest::of(bytes))
    }

    /// A whole section from a reader, to its end; its length.
    pub fn add_reader(&mut self, head: SectionHead, mut reader: impl Read) -> Result<u64> {
        let mut section = self.begin(head)?;
        let copied = io::copy(&mut reader, &mut section);
        let copied = copied.map_err(|error| section.error(error))?;
        section.end()?;
        Ok(copied)
    }

    /// A whole section from buffers that are written as they come, without gathering them.
    pub fn add_pages<B: AsRef<[u8]>>(
        &mut self,
        head: SectionHead,
        pages: impl IntoIterator<Item = io::Result<B>>,
    ) -> Result<()> {
        let mut section = self.begin(head)?;
        for page in pages {
            let written = page.and_then(|page| section.write_all(page.as_ref()));
            written.map_err(|error| section.error(error))?;
        }
        section.end()
    }

    /// A whole section of `len` bytes that `fill(offset, buffer)` brings piece by piece, called by several
    /// threads (0: as many as are worth while) in any order: the fast way for memory. Each piece is hashed and
    /// written from that buffer.
    pub fn add_filled(
        &mut self,
        head: SectionHead,
        len: u64,
        threads: usize,
        fill: impl Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
    ) -> Result<()> {
        self.check_head(&head)?;
        self.expect(len)?;
        self.broken = true;
        let threads = if threads == 0 { usual_threads() } else { threads };
        let (file, at) = (self.temp.file(), self.at);
        let early = Early::new(self.durable, at);
        if self.durable {
            reserve(file, at, len);
        }
        let digest = digest_parallel(len, threads, |offset, buffer| {
            fill(offset, buffer)?;
            file.write_all_at(buffer, at.saturating_add(offset))?;
            early.wrote_piece(file, offset);
            Ok(())
        });
        let digest = digest.map_err(|error| self.write_error(&head, error))?;
        self.push(head, len, digest)
    }

    /// A whole section made of `ranges` (offset, length) of another file, e.g. of the memfd that is a guest's
    /// memory: copied by the kernel, or shared where the file system can, then read back for the digest.
    pub fn add_file_ranges(&mut self, head: SectionHead, from: &File, ranges: &[(u64, u64)]) -> Result<()> {
        self.check_head(&head)?;
        self.expect_copies(ranges.iter().fold(0, |sum: u64, (_, len)| sum.saturating_add(*len)))?;
        self.broken = true;
        let mut at = self.at;
        for &(offset, len) in ranges {
            let copied = self.copy_here((from, offset), at, len);
            copied.map_err(|error| self.write_error(&head, error))?;
            at = at.saturating_add(len);
        }
        let len = at.saturating_sub(self.at);
        let digest = self.read_back(len).map_err(|error| self.write_error(&head, error))?;
        self.push(head, len, digest)
    }

    /// A section of another machine file, unchanged: shared where the file system can, else copied.
    pub fn copy_section(&mut self, from: &MachineFile, section: &Section, check: CopyCheck) -> Result<()> {
        self.copy_section_as(SectionHead::like(section), from, section, check)
    }

    /// [`MachineFileWriter::copy_section`] under another head: the bytes are the same.
    pub fn copy_section_as(
        &mut self,
        head: SectionHead,
        from: &MachineFile,
        section: &Section,
        check: CopyCheck,
    ) -> Result<()> {
        if check == CopyCheck::Trust {
            self.check_head(&head)?;
            self.expect_copies(section.len)?;
            self.broken = true;
            let copied = self.copy_here((from.file(), section.offset), self.at, section.len);
            copied.map_err(|error| self.write_error(&head, error))?;
            return self.push(head, section.len, section.digest);
        }
        self.add_file_ranges(head, from.file(), &[(section.offset, section.len)])?;
        match self.index.sections.last() {
            Some(copy) if copy.digest == section.digest => Ok(()),
            _ => {
                self.broken = true;
                Err(from.digest_differs(section))
            }
        }
    }

    /// Index, header, disk, name: after this the file is there, whole.
    pub fn finish(self) -> Result<Written> {
        let (path, dir, durable) = (self.path.clone(), self.dir.clone(), self.durable);
        let (temp, id, len) = self.seal()?;
        let named = temp.replace(&path);
        let file = named.map_err(|error| Error::io(&path, "give the file its name", error))?;
        // The lock said that it was unfinished; what cannot be locked cannot be unlocked.
        let _ = file.unlock();
        if durable {
            sync_dir(&dir).map_err(|error| Error::io(&dir, "write the directory", error))?;
        }
        Ok(Written { id, len, file })
    }

    /// All of [`MachineFileWriter::finish`] but the name: for the store, where the name is the id.
    pub fn seal(self) -> Result<(TempFile, Digest, u64)> {
        if self.broken {
            return Err(self.misuse("a section was begun and not ended"));
        }
        let at = self.at;
        let too_long = || Problem::Misuse("the file is longer than a file can be".to_owned());
        let index_len = Index::encoded_len(self.index.sections.len());
        let len = at.checked_add(index_len).and_then(page_up);
        let len = len.ok_or_else(|| too_long().at(&self.path))?;
        let index = self.index.encode(len);
        let header = Header { index_offset: at, index_len, id: Digest::of(&index) };
        let file = self.temp.file();
        let write = |error| Error::io(&self.path, "write the index", error);
        file.write_all_at(&index, at).map_err(write)?;
        file.set_len(len).map_err(write)?;
        file.write_all_at(&header.encode(), 0).map_err(write)?;
        if self.durable {
            let synced = file.sync_all();
            synced.map_err(|error| Error::io(&self.path, "bring it to the disk", error))?;
        }
        Ok((self.temp, header.id, len))
    }

    /// Where the next section would start, in bytes: what is used so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Copies `len` bytes of another file to `at` in this one.
    fn copy_here(&self, from: (&File, u64), at: u64, len: u64) -> io::Result<()> {
        let file = self.temp.file();
        let (mut early, mut end) = (Early::new(self.durable, at), at);
        // Blocks that are shared need no room.
        if self.durable && !space::may_share(&self.dir) {
            reserve(file, at, len);
        }
        copy_range(from, (file, at), len, |copied| {
            end = end.saturating_add(copied);
            early.wrote(file, end);
            Ok(())
        })
    }

    /// The digest of `len` bytes of the section that was just written.
    fn read_back(&self, len: u64) -> io::Result<Digest> {
        digest_parallel(len, usual_threads(), |offset, buffer| {
            self.temp.file().read_exact_at(buffer, self.at.saturating_add(offset))
        })
    }

    /// Whether a section with this head may come next.
    fn check_head(&self, head: &SectionHead) -> Result<()> {
        let key = (head.kind_number, head.instance);
        let same = |s: &Section| (s.kind_number, s.instance) == key;
        if self.broken {
            return Err(self.misuse("a section was begun and not ended"));
        }
        if self.index.sections.iter().any(same) {
            return Err(self.misuse(&format!("section {} is there already", head.name)));
        }
        if !check_name(&head.name) {
            return Err(self.misuse(&format!("{:?} is no name of a section", head.name)));
        }
        if self.index.sections.len() >= MAX_SECTIONS {
            return Err(self.misuse(&format!("more than {MAX_SECTIONS} sections")));
        }
        Ok(())
    }

    /// Notes a section that was written whole.
    fn push(&mut self, head: SectionHead, len: u64, digest: Digest) -> Result<()> {
        let offset = self.at;
        let Some(end) = offset.checked_add(len).and_then(page_up) else {
            return Err(self.misuse("the file is longer than a file can be"));
        };
        let SectionHead { kind_number, instance, flags, version, name } = head;
        let section = Section { kind_number, instance, flags, version, name, offset, len, digest };
        self.index.sections.push(section);
        self.at = end;
        self.broken = false;
        Ok(())
    }

    fn misuse(&self, what: &str) -> Error {
        Problem::Misuse(what.to_owned()).at(&self.path)
    }

    fn write_error(&self, head: &SectionHead, error: io::Error) -> Error {
        Error::io(&self.path, format!("write section {}", head.name), error)
    }
}

/// A section that is being streamed.
pub struct SectionWriter<'a> {
    writer: &'a mut MachineFileWriter,
    head: SectionHead,
    hasher: Hasher,
    buffer: Vec<u8>,
    /// Where `buffer` goes.
    at: u64,
    early: Early,
}

impl SectionWriter<'_> {
    /// The section is whole.
    pub fn end(mut self) -> Result<()> {
        let flushed = self.flush();
        flushed.map_err(|error| self.error(error))?;
        let len = self.at.saturating_sub(self.writer.at);
        let digest = self.hasher.finish();
        self.writer.push(self.head, len, digest)
    }

    fn error(&self, error: io::Error) -> Error {
        self.writer.write_error(&self.head, error)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.temp.file().write_all_at(bytes, self.at)?;
        self.hasher.update(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64);
        self.early.wrote(self.writer.temp.file(), self.at);
        Ok(())
    }
}

impl Write for SectionWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            self.put(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let put = self.put(&buffer);
        buffer.clear();
        self.buffer = buffer;
        put
    }
}
