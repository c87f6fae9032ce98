//! The pages that a resume touches first: laid together when a file is built, read ahead when it is resumed.
//!
//! Problem: from a disk, with nothing of the file in the host's memory, a resume waits for each page that it touches, one
//! after the other. Strategy: a build wakes the machine once and notes what it touches (`instance/vmm/working_set.rs`);
//! these pages lie at the front of the section of pages, and a small section says which they are, and which pages of
//! the root image belong to them, in the order in which they are needed. Who resumes has a thread read them in this
//! order and goes on. Invariants: it is a hint. What the section says is bounded by the file, nothing of it reaches the
//! guest, and a file without it resumes the same.
//! docs/formats/machine-file.md, section 6.3. Next: `machine/restore.rs`.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use artifact::relay::Needed;
use artifact::{MachineFile, MachineFileWriter, SectionFlags, SectionHead, SectionKind};
use guestmem::PAGE_SIZE;
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use crate::Error;
use crate::memory::{PAGES_VERSION, Stored};

/// Version of the section: 16 bytes for each run.
const VERSION: u32 = 1;
/// At most so many runs, of the root image too: a reader refuses more.
const RUNS: usize = 512;
const ENTRY: usize = 16;
/// Set in a place: it is in the root image.
const IN_ROOT: u64 = 1 << 63;
/// Runs that stay where they are: of the section of pages, and of the root image; and what is read with them to join
/// them, in thousandths.
const STAYING: usize = 128;
const JOIN_PERMILLE: u32 = 500;
/// From so many bytes on a range comes after all shorter ones, whenever it is needed: it delays them by more than they
/// delay it.
const LONG: u64 = 4 << 20;
/// At most so many bytes of shorter ranges are waited for.
const FIRST: u64 = 16 << 20;
/// Bytes that are asked for without waiting until they are there, where a range has no more. Linux reads of one request no
/// more than the device's read-ahead window, or its largest transfer where that is more, and passes the rest over
/// (mm/readahead.c, force_page_cache_ra): this is the window's default, and smaller than any transfer.
const REQUEST: u64 = 128 << 10;
/// Bytes of a longer range that are read at a time.
const PIECE: u64 = 1 << 20;
/// How many pages of the longest range are looked at to know whether it is in the host's memory.
const SAMPLES: u64 = 4;

/// What was laid together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkingSetStats {
    /// Pages at the front of the section of pages.
    pub front_pages: u64,
    /// Pages of the root image.
    pub root_pages: u64,
    /// Extents that the map has now.
    pub extents: usize,
}

/// Writes the memory of `from` as it is there, but with the `touched` pages in front, and which they are. `touched`: in
/// the order of their first touch.
///
/// # Errors
/// The files'.
pub fn write_laid_out(
    writer: &mut MachineFileWriter,
    from: &MachineFile,
    touched: &[u64],
) -> Result<WorkingSetStats, Error> {
    let stored = Stored::read(from)?;
    let laid = stored.map.lay_first(&stored.map.places_of(touched));
    let behind = laid.map.places_of(touched).from(laid.front_pages()).runs(STAYING, JOIN_PERMILLE, &[]);
    let in_root = laid.map.root_places_of(touched).runs(STAYING, JOIN_PERMILLE, &[]);
    let root_pages = in_root.iter().map(|run| run.pages).sum();
    let head = SectionHead::new(SectionKind::MemoryMap, laid.map.version());
    writer.add_bytes(head, &laid.map.encode())?;
    let head = SectionHead::new(SectionKind::MemoryPages, PAGES_VERSION);
    let place = |(place, pages): &(u64, u64)| (stored.pages + place * PAGE_SIZE, pages * PAGE_SIZE);
    let ranges: Vec<(u64, u64)> = laid.order.iter().map(place).collect();
    writer.add_file_ranges(head, from.file(), &ranges)?;
    let head = SectionHead::new(SectionKind::WorkingSet, VERSION);
    let head = SectionHead { flags: SectionFlags::IGNORABLE, ..head };
    writer.add_bytes(head, &encode(&laid.front, &behind, &in_root))?;
    Ok(WorkingSetStats { front_pages: laid.front_pages(), root_pages, extents: laid.map.extents.len() })
}

/// The runs, the long ones last, in the order in which they are needed; what follows each other in the file as one, but not
/// short ones as a long one.
fn encode(front: &[Needed], behind: &[Needed], in_root: &[Needed]) -> Vec<u8> {
    let is_long = |pages: u64| pages * PAGE_SIZE >= LONG;
    let root = in_root.iter().map(|run| Needed { place: run.place | IN_ROOT, ..*run });
    let mut runs: Vec<Needed> = front.iter().chain(behind).copied().chain(root).collect();
    runs.sort_by_key(|run| (is_long(run.pages), run.after));
    runs.dedup_by(|next, run| {
        let alike = is_long(run.pages) == is_long(run.pages + next.pages);
        let follows = alike && run.place + run.pages == next.place;
        run.pages += if follows { next.pages } else { 0 };
        follows
    });
    let words = runs.iter().flat_map(|run| [run.place, run.pages]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// What is to be read ahead of a file.
#[derive(Debug)]
pub struct WorkingSet {
    /// In bytes: (place in the file, how many).
    ranges: Vec<(u64, u64)>,
}

impl WorkingSet {
    /// The working set of a file's snapshot; `None` where it says none.
    ///
    /// # Errors
    /// [`Error::Malformed`] where a run is beyond its section; the file's. A version that is not known is passed over.
    pub fn read(file: &MachineFile) -> Result<Option<Self>, Error> {
        let Some(section) = file.section(SectionKind::WorkingSet).filter(|s| s.version == VERSION) else {
            return Ok(None);
        };
        let bytes = file.read_section(section, (RUNS * ENTRY) as u64)?;
        let malformed = |why: &str| Error::Malformed { what: "working set", why: why.to_owned() };
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        if !rest.is_empty() {
            return Err(malformed("its length is no whole number of runs"));
        }
        let pages = file.section(SectionKind::MemoryPages);
        let root = file.section(SectionKind::RootImage);
        let mut ranges = Vec::with_capacity(entries.len());
        for entry in entries {
            let (place, count) = (word(entry, 0), word(entry, 8));
            let section = if place & IN_ROOT == 0 { pages } else { root };
            let section = section.ok_or_else(|| malformed("a run is in a section that is not there"))?;
            let place = place & !IN_ROOT;
            let end = place.checked_add(count).filter(|end| *end <= section.len / PAGE_SIZE);
            if end.is_none() || count == 0 {
                return Err(malformed("a run is empty or beyond its section"));
            }
            ranges.push((section.offset + place * PAGE_SIZE, count * PAGE_SIZE));
        }
        Ok(Some(Self { ranges }))
    }

    /// The ranges, in bytes: (place in the file, how many).
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether something of it is not in the host's memory, by looking at a few pages without waiting for any.
    pub fn is_cold(&self, file: &File) -> bool {
        let mut byte = [0];
        self.ranges.iter().max_by_key(|(_, len)| *len).is_some_and(|&(start, len)| {
            let mut places = (0..SAMPLES).map(|n| start + (len - PAGE_SIZE) / (SAMPLES - 1) * n);
            // Where the file system cannot answer without waiting nothing is known, and nothing is done.
            places.any(|place| {
                let read = rustix::io::preadv2(
                    file,
                    &mut [IoSliceMut::new(&mut byte)],
                    place,
                    ReadWriteFlags::NOWAIT,
                );
                matches!(read, Err(rustix::io::Errno::AGAIN) | Ok(0))
            })
        })
    }

    /// Has the host read what the guest needs while it wakes, the short ranges, and waits until it is there. A guest that runs
    /// meanwhile asks for pages in between, and each of its requests waits for all that was asked for before.
    pub fn read_first(&self, file: &File) {
        read(file, self.ranges.get(..self.first()).unwrap_or_default());
    }

    /// Has the host read the others, in their order, and waits until most of it is there.
    pub fn read_rest(&self, file: &File) {
        read(file, self.ranges.get(self.first()..).unwrap_or_default());
    }

    /// How many ranges are first.
    fn first(&self) -> usize {
        let mut left = FIRST;
        let fits = |(_, len): &&(u64, u64)| {
            let fits = *len < LONG && *len <= left;
            left = left.saturating_sub(*len);
            fits
        };
        self.ranges.iter().take_while(fits).count()
    }
}

/// Reads ranges. Of a file that is read from one end to the other the host keeps its memory in large pieces, which costs it a
/// third of the processor time, and reads ahead by itself. The shortest are asked for and not waited for.
fn read(file: &File, ranges: &[(u64, u64)]) {
    let mut buffer = vec![0; PIECE as usize];
    for &(start, len) in ranges {
        // Hints; what a host does not read now it reads when it is touched.
        if len <= REQUEST {
            let _ = rustix::fs::fadvise(file, start, std::num::NonZero::new(len), Advice::WillNeed);
            continue;
        }
        for at in (0..len).step_by(PIECE as usize) {
            let piece = PIECE.min(len - at) as usize;
            let _ = file.read_exact_at(buffer.get_mut(..piece).unwrap_or_default(), start + at);
        }
    }
}

fn word(entry: &[u8; ENTRY], at: usize) -> u64 {
    let bytes = entry.get(at..).and_then(|bytes| bytes.first_chunk::<8>());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ranges_come_first_and_long_ones_last() {
        let run = |place, pages, after| Needed { place, pages, after };
        let long = LONG / PAGE_SIZE;
        // The second lies behind the first, so the two are one; not with the third, which would make them long.
        let front = [run(0, 10, 1), run(10, long - 10 - 1, 2), run(long - 1, 5, 3), run(long + 4, long, 0)];
        let bytes = encode(&front, &[], &[run(7, 1, 2)]);
        let words: Vec<u64> = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(words, [0, long - 1, IN_ROOT | 7, 1, long - 1, 5, long + 4, long]);

        let first = |ranges: &[(u64, u64)]| WorkingSet { ranges: ranges.to_vec() }.first();
        assert_eq!(first(&[(0, LONG - 1), (LONG, 4096), (2 * LONG, LONG), (0, 4096)]), 2);
        assert_eq!(first(&[(0, LONG - 4096); 9]), 4);
        assert_eq!(first(&[(0, LONG)]), 0);
    }
}
