//! From two machine files to what leads from one to the other.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use artifact::temp::{TempFile, TempStyle, sync_dir};
use artifact::{Digest, MachineFile};

use crate::error::{Error, io_error};
use crate::format::{self, Head, Op, PAGE};
use crate::similar::Sketches;

/// zstd's level: a delta is made once and fetched often.
const LEVEL: i32 = 19;

/// What a delta is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bytes of the delta.
    pub bytes: u64,
    /// Bytes of the new file.
    pub new_bytes: u64,
    /// Pages of the new file that are in the old one, or zeros.
    pub same_pages: u64,
    /// Pages stored as a difference.
    pub similar_pages: u64,
    /// Pages stored whole.
    pub whole_pages: u64,
}

/// Writes to `out` what makes `new` of `old`. Both files were verified by the caller.
///
/// # Errors
/// The files'.
pub fn create(old: &MachineFile, new: &MachineFile, out: &Path) -> Result<Report, Error> {
    let old_pages = pages(old)?;
    let index = Index::of(&old_pages);
    let mut streams = Streams::new().map_err(io_error("compress", out))?;
    let (mut report, mut expected) = (Report { new_bytes: new.len(), ..Report::default() }, 0);
    for_each_page(new, |page| {
        let op = index.find(&old_pages, page, expected);
        match op {
            Found::Zero | Found::Same(_) => report.same_pages += 1,
            Found::Similar(_) => report.similar_pages += 1,
            Found::New => report.whole_pages += 1,
        }
        if let Found::Same(at) | Found::Similar(at) = op {
            expected = at + 1;
        }
        streams.add(op, page, &old_pages)
    })?;
    let streams = streams.finish().map_err(io_error("compress", out))?;
    let head = Head {
        old: old.id(),
        new: new.id(),
        new_len: new.len(),
        streams: std::array::from_fn(|i| streams[i].len() as u64),
    };
    let rest: Vec<&[u8]> = streams.iter().map(Vec::as_slice).collect();
    let head = head.encode(&rest);
    report.bytes = (head.len() + rest.iter().map(|bytes| bytes.len()).sum::<usize>()) as u64;
    publish(&head, &rest, out).map_err(io_error("write", out))?;
    Ok(report)
}

/// A file's pages in memory: the old one is looked at in any order.
fn pages(file: &MachineFile) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(file.len()).map_err(io::Error::other).map_err(io_error("read", file.path()))?;
    let mut bytes = vec![0; len];
    file.file().read_exact_at(&mut bytes, 0).map_err(io_error("read", file.path()))?;
    Ok(bytes)
}

fn for_each_page(
    file: &MachineFile,
    mut each: impl FnMut(&[u8; PAGE]) -> io::Result<()>,
) -> Result<(), Error> {
    let mut piece = vec![0; 256 * PAGE];
    let mut at = 0;
    while at < file.len() {
        let len = piece.len().min(usize::try_from(file.len() - at).unwrap_or(usize::MAX));
        let read = file.file().read_exact_at(&mut piece[..len], at);
        read.and_then(|()| piece[..len].as_chunks().0.iter().try_for_each(&mut each))
            .map_err(io_error("read", file.path()))?;
        at += len as u64;
    }
    Ok(())
}

fn publish(head: &[u8], rest: &[&[u8]], out: &Path) -> io::Result<()> {
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = TempFile::create_in(dir, 0o600, TempStyle::Auto)?;
    let mut file: &File = temp.file();
    file.write_all(head)?;
    rest.iter().try_for_each(|bytes| file.write_all(bytes))?;
    file.sync_all()?;
    temp.replace(out)?;
    sync_dir(dir)
}

/// Where a new page's bytes are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Zero,
    Same(u64),
    Similar(u64),
    New,
}

/// The old file's pages by content.
struct Index {
    same: HashMap<Digest, u32>,
    similar: Sketches,
}

impl Index {
    fn of(old: &[u8]) -> Self {
        let pages = old.as_chunks::<PAGE>().0;
        let mut same = HashMap::with_capacity(pages.len());
        for (number, page) in (0..).zip(pages) {
            same.entry(Digest::of(page)).or_insert(number);
        }
        let similar = Sketches::of((0..).zip(pages).filter(|(_, page)| !is_zero(page)));
        Self { same, similar }
    }

    /// `expected`: the old page after the last one that was used.
    fn find(&self, old: &[u8], page: &[u8; PAGE], expected: u64) -> Found {
        if is_zero(page) {
            return Found::Zero;
        }
        let pages = old.as_chunks::<PAGE>().0;
        let at = |number: u64| usize::try_from(number).ok().and_then(|number| pages.get(number));
        if at(expected) == Some(page) {
            return Found::Same(expected);
        }
        if let Some(number) = self.same.get(&Digest::of(page)) {
            return Found::Same((*number).into());
        }
        let near = self.similar.like(page).into_iter().map(u64::from).chain([expected]);
        let changed = |number: u64| at(number).map(|old| (changed_words(page, old), number));
        match near.filter_map(changed).min() {
            // Else the difference costs more than the page.
            Some((words, number)) if words <= PAGE / 8 / 2 => Found::Similar(number),
            _ => Found::New,
        }
    }
}

fn is_zero(page: &[u8; PAGE]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

fn changed_words(a: &[u8; PAGE], b: &[u8; PAGE]) -> usize {
    a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0).filter(|(a, b)| a != b).count()
}

/// What is written, being compressed.
struct Streams {
    ops: Vec<u8>,
    whole: zstd::Encoder<'static, Vec<u8>>,
    differences: zstd::Encoder<'static, Vec<u8>>,
    /// The run so far, and the old page that would follow it.
    run: Option<Op>,
    expected: u64,
}

impl Streams {
    fn new() -> io::Result<Self> {
        let (whole, differences) = (format::stream(LEVEL)?, format::stream(LEVEL)?);
        Ok(Self { ops: Vec::new(), whole, differences, run: None, expected: 0 })
    }

    fn add(&mut self, found: Found, page: &[u8; PAGE], old: &[u8]) -> io::Result<()> {
        match found {
            Found::New => self.whole.write_all(page)?,
            Found::Similar(at) => {
                let old = old.as_chunks::<PAGE>().0.get(at as usize).ok_or(io::ErrorKind::InvalidInput)?;
                self.differences.write_all(&format::difference(page, old))?;
            }
            Found::Zero | Found::Same(_) => {}
        }
        let longer = match (self.run, found) {
            (Some(Op::Zero { count }), Found::Zero) => Some(Op::Zero { count: count + 1 }),
            (Some(Op::Whole { count }), Found::New) => Some(Op::Whole { count: count + 1 }),
            (Some(Op::Copy { from, count }), Found::Same(at)) if at == from + count => {
                Some(Op::Copy { from, count: count + 1 })
            }
            (Some(Op::Differ { from, count }), Found::Similar(at)) if at == from + count => {
                Some(Op::Differ { from, count: count + 1 })
            }
            _ => None,
        };
        if longer.is_none() {
            self.end_run();
        }
        self.run = longer.or(Some(match found {
            Found::Zero => Op::Zero { count: 1 },
            Found::New => Op::Whole { count: 1 },
            Found::Same(from) => Op::Copy { from, count: 1 },
            Found::Similar(from) => Op::Differ { from, count: 1 },
        }));
        Ok(())
    }

    fn end_run(&mut self) {
        let Some(op) = self.run.take() else { return };
        op.write(self.expected, &mut self.ops);
        if let Op::Copy { from, count } | Op::Differ { from, count } = op {
            self.expected = from + count;
        }
    }

    fn finish(mut self) -> io::Result<[Vec<u8>; 3]> {
        self.end_run();
        let mut ops = format::stream(LEVEL)?;
        ops.write_all(&self.ops)?;
        Ok([ops.finish()?, self.whole.finish()?, self.differences.finish()?])
    }
}
