//! From the old machine file and a delta to the new one.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use artifact::temp::{TempFile, TempStyle, sync_dir};
use artifact::{Digest, MachineFile, VerifyOptions};

use crate::error::{Error, io_error};
use crate::format::{self, HEAD, Head, Op, PAGE, Wrong};

/// Pages moved at once.
const PIECE: u64 = 64;

/// Makes the new machine file at `out`, verified; a file of that name stays until it is whole. `old` was
/// verified by the caller.
///
/// # Errors
/// [`Error::OtherOld`], [`Error::Foreign`], [`Error::Version`], [`Error::Damaged`]; no room; the host's.
pub fn apply(old: &MachineFile, delta: &Path, out: &Path) -> Result<Digest, Error> {
    let read = io_error("read", delta);
    let mut file = artifact::open_quietly(delta)?;
    let head = head(&mut file, delta)?;
    if head.old != old.id() {
        let (delta, path) = (delta.to_owned(), old.path().to_owned());
        return Err(Error::OtherOld { delta, old: path, wanted: head.old, found: old.id() });
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    artifact::space::check(out, dir, head.new_len)?;
    let temp = TempFile::create_in(dir, 0o600, TempStyle::Auto).map_err(io_error("make a file for", out))?;
    let sources = Sources::open(&file, &head).map_err(read)?;
    write(&head, old, sources, temp.file()).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            damaged(delta, "it does not lead to a file")
        }
        _ => io_error("write", out)(e),
    })?;
    let again = temp.file().try_clone().map_err(io_error("read", out))?;
    let made = MachineFile::open(again, out)?;
    if made.id() != head.new {
        return Err(damaged(delta, "it leads to another file than it says"));
    }
    made.verify_all(VerifyOptions::default())?;
    let named = temp.file().sync_all().and_then(|()| temp.replace(out)).and_then(|_| sync_dir(dir));
    named.map_err(io_error("name", out))?;
    Ok(head.new)
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::Damaged { path: path.to_owned(), why: why.to_owned() }
}

/// The head, once the whole file is what its digest says.
fn head(file: &mut File, path: &Path) -> Result<Head, Error> {
    let mut raw = [0; HEAD];
    let foreign = || Error::Foreign { path: path.to_owned() };
    file.read_exact(&mut raw).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => foreign(),
        _ => io_error("read", path)(e),
    })?;
    let head = Head::decode(&raw).map_err(|wrong| match wrong {
        Wrong::Foreign => foreign(),
        Wrong::Version(found) => Error::Version { path: path.to_owned(), found, reads: format::VERSION },
        Wrong::Damaged(why) => damaged(path, why),
    })?;
    let len = file.metadata().map_err(io_error("read", path))?.len();
    if head.len() != Some(len) {
        return Err(damaged(path, "it is shorter or longer than it says"));
    }
    if !format::check(&raw, file).map_err(io_error("read", path))? {
        return Err(damaged(path, "its digest differs"));
    }
    Ok(head)
}

/// A part of the delta, read by position: the three are read side by side.
struct Part {
    file: File,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut to[..len], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

type Stream = BufReader<zstd::Decoder<'static, BufReader<Part>>>;

/// The three streams, being unpacked.
struct Sources {
    ops: Stream,
    whole: Stream,
    differences: Stream,
}

impl Sources {
    fn open(file: &File, head: &Head) -> io::Result<Self> {
        let open = |at: u64, left: u64| {
            let part = Part { file: file.try_clone()?, at, left };
            Ok::<Stream, io::Error>(BufReader::new(zstd::Decoder::new(part)?))
        };
        let [ops, whole, differences] = head.streams;
        let start = HEAD as u64;
        Ok(Self {
            ops: open(start, ops)?,
            whole: open(start + ops, whole)?,
            differences: open(start + ops + whole, differences)?,
        })
    }
}

fn write(head: &Head, old: &MachineFile, mut sources: Sources, to: &File) -> io::Result<()> {
    let mut to = BufWriter::with_capacity(PIECE as usize * PAGE, to);
    let (mut left, mut expected) = (head.new_len / PAGE as u64, 0);
    while left > 0 {
        let op = Op::read(expected, &mut sources.ops)?;
        if op.count() == 0 || op.count() > left {
            return Err(io::ErrorKind::InvalidData.into());
        }
        left -= op.count();
        if let Op::Copy { from, count } | Op::Differ { from, count } = op {
            let end = from.checked_add(count).filter(|end| *end <= old.len() / PAGE as u64);
            expected = end.ok_or(io::ErrorKind::InvalidData)?;
        }
        execute(op, old, &mut sources, &mut to)?;
    }
    to.flush()
}

fn execute(op: Op, old: &MachineFile, sources: &mut Sources, to: &mut impl Write) -> io::Result<()> {
    let mut bytes = vec![0; PIECE as usize * PAGE];
    let mut done = 0;
    while done < op.count() {
        let pages = (op.count() - done).min(PIECE);
        let piece = &mut bytes[..pages as usize * PAGE];
        let place = |from: u64| (from + done) * PAGE as u64;
        match op {
            Op::Zero { .. } => piece.fill(0),
            Op::Copy { from, .. } => old.file().read_exact_at(piece, place(from))?,
            Op::Whole { .. } => sources.whole.read_exact(piece)?,
            Op::Differ { from, .. } => {
                old.file().read_exact_at(piece, place(from))?;
                for page in piece.as_chunks_mut::<PAGE>().0 {
                    let mut difference = [0; PAGE];
                    sources.differences.read_exact(&mut difference)?;
                    *page = format::sum(&difference, page);
                }
            }
        }
        to.write_all(piece)?;
        done += pages;
    }
    Ok(())
}
