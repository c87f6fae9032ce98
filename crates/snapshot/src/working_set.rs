//! The pages that a resume touches first: laid together when a file is built, read ahead when it is resumed.
//!
//! Problem: from a disk, with nothing of the file in the host's memory, a resume waits for each page that it touches, one
//! after the other. Strategy: a build wakes the machine once and notes what it touches (`instance/vmm/working_set.rs`);
//! these pages lie at the front of the section of pages, in the order in which they are needed, and a small section says
//! which they are, and which others belong to them where they are. Who resumes has a thread read them in this order,
//! waits for what the guest needs until its tasks go on, and lets it run beside the rest. Invariants: it is a hint. What the
//! section says is bounded by the file, nothing of it reaches the guest, and a file without it resumes the same.
//! docs/formats/machine-file.md, section 6.3. Next: `machine/restore.rs`.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use artifact::relay::{Laid, Needed, Touches};
use artifact::{MachineFile, MachineFileWriter, SectionFlags, SectionHead, SectionKind};
use guestmem::PAGE_SIZE;
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use crate::Error;
use crate::memory::{PAGES_VERSION, Stored};

/// Version of the section: how many runs are waited for, then 16 bytes for each run.
const VERSION: u32 = 2;
/// At most so many runs, of the root image too: a reader refuses more.
const RUNS: usize = 1024;
const HEAD: usize = 8;
const ENTRY: usize = 16;
/// Set in a place: it is in the root image.
const IN_ROOT: u64 = 1 << 63;
/// Runs that stay where they are, of the section of pages, and of the root image, all of them and the early ones; and what is
/// read with them to join them, in thousandths.
const STAYING: usize = 128;
const JOIN_PERMILLE: u32 = 500;
/// Runs that stay are joined where no more pages lie between them: reading those takes less time than a request.
const GAP: u64 = 16;
/// At most so many bytes are waited for.
const FIRST: u64 = 16 << 20;
/// A range of no more bytes is asked for, without waiting until it is there: whoever waits has the device stand still, and
/// the host read on behind it.
const SHORT: u64 = 1 << 20;
/// Bytes that are asked for at a time. Linux reads of one request no more than the device's read-ahead window, or its
/// largest transfer where that is more, and passes the rest over (mm/readahead.c, force_page_cache_ra): this is the window's
/// default, and smaller than any transfer.
const REQUEST: u64 = 128 << 10;
/// Bytes of a longer range that are read at a time.
const PIECE: u64 = 1 << 20;
/// How many pages of the longest range are looked at to know whether it is in the host's memory.
const SAMPLES: u64 = 4;

/// Pages of memory that a resume touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// In the order of their first touch.
    pub pages: Vec<u64>,
    /// So many of them while the guest's tasks stood still.
    pub waking: usize,
}

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

/// Writes the memory of `from` as it is there, but with the `touched` pages in front, and which they are.
///
/// # Errors
/// The files'.
pub fn write_laid_out(
    writer: &mut MachineFileWriter,
    from: &MachineFile,
    touched: &Touched,
) -> Result<WorkingSetStats, Error> {
    let stored = Stored::read(from)?;
    let laid = stored.map.lay_first(&stored.map.places_of(&touched.pages));
    let hint = Hint::new(&laid, touched);
    let root_pages = hint.in_root.iter().map(|run| run.pages).sum();
    let head = SectionHead::new(SectionKind::MemoryMap, laid.map.version());
    writer.add_bytes(head, &laid.map.encode())?;
    let head = SectionHead::new(SectionKind::MemoryPages, PAGES_VERSION);
    let place = |(place, pages): &(u64, u64)| (stored.pages + place * PAGE_SIZE, pages * PAGE_SIZE);
    let ranges: Vec<(u64, u64)> = laid.order.iter().map(place).collect();
    writer.add_file_ranges(head, from.file(), &ranges)?;
    let head = SectionHead::new(SectionKind::WorkingSet, VERSION);
    let head = SectionHead { flags: SectionFlags::IGNORABLE, ..head };
    let room =
        laid.map.stored_pages() + from.section(SectionKind::RootImage).map_or(0, |s| s.len / PAGE_SIZE);
    writer.add_bytes(head, &hint.encode(room))?;
    Ok(WorkingSetStats { front_pages: laid.front_pages(), root_pages, extents: laid.map.extents.len() })
}

/// What the section is made of: runs in the order in which they are needed.
struct Hint {
    /// How many pages were touched before the guest's tasks went on.
    waking: usize,
    /// The part at the front: that of the waking, the rest.
    front: Vec<Needed>,
    /// What stays where it is.
    behind: Vec<Needed>,
    in_root: Vec<Needed>,
    /// What of all these the waking touches, but for the front's first part.
    early: Vec<Needed>,
    early_in_root: Vec<Needed>,
}

impl Hint {
    fn new(laid: &Laid, touched: &Touched) -> Self {
        let waking = touched.waking;
        let early = touched.pages.get(..waking).unwrap_or(&touched.pages);
        let staying = |touches: Touches| joined(touches.runs(STAYING, JOIN_PERMILLE, &[]));
        let first = laid.front.iter().take_while(|run| run.after < waking).map(|run| run.pages).sum();
        Self {
            waking,
            behind: staying(laid.map.places_of(&touched.pages).from(laid.front_pages())),
            in_root: staying(laid.map.root_places_of(&touched.pages)),
            early: staying(laid.map.places_of(early).from(first)),
            early_in_root: staying(laid.map.root_places_of(early)),
            front: laid.front.clone(),
        }
    }

    /// The section; its runs are together no longer than `room` pages.
    fn encode(&self, mut room: u64) -> Vec<u8> {
        let in_root = |run: &Needed| Needed { place: run.place | IN_ROOT, ..*run };
        let (waking, rest) = self.front.split_at(self.front.partition_point(|run| run.after < self.waking));
        let mut rest: Vec<Needed> =
            rest.iter().chain(&self.behind).copied().chain(self.in_root.iter().map(in_root)).collect();
        rest.sort_by_key(|run| run.after);
        let needed: u64 = waking.iter().chain(&rest).map(|run| run.pages).sum();
        room = room.saturating_sub(needed);
        // Few and short: asked for before the longer ones, they cost these nothing.
        let mut first: Vec<Needed> =
            self.early_in_root.iter().map(in_root).chain(self.early.iter().copied()).collect();
        first.retain(|run| {
            let fits = run.pages <= room;
            room -= if fits { run.pages } else { 0 };
            fits
        });
        first.extend_from_slice(waking);
        let (first, rest) = (following(first), following(rest));
        let words = first.iter().chain(&rest).flat_map(|run| [run.place, run.pages]);
        [first.len() as u64].into_iter().chain(words).flat_map(u64::to_le_bytes).collect()
    }
}

/// With those joined between which little lies. `runs` do not overlap; in the order in which they are needed.
fn joined(mut runs: Vec<Needed>) -> Vec<Needed> {
    runs.sort_unstable_by_key(|run| run.place);
    runs.dedup_by(|next, run| {
        let near = next.place - (run.place + run.pages) <= GAP;
        if near {
            run.pages = next.place + next.pages - run.place;
            run.after = run.after.min(next.after);
        }
        near
    });
    runs.sort_by_key(|run| run.after);
    runs
}

/// With what follows each other in the file as one.
fn following(mut runs: Vec<Needed>) -> Vec<Needed> {
    runs.dedup_by(|next, run| {
        let follows = run.place + run.pages == next.place;
        run.pages += if follows { next.pages } else { 0 };
        follows
    });
    runs
}

/// In bytes: (place in the file, how many).
type Range = (u64, u64);

/// What is to be read ahead of a file.
#[derive(Debug)]
pub struct WorkingSet {
    ranges: Vec<Range>,
    /// So many bytes of the first of them are waited for.
    first: u64,
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
        let bytes = file.read_section(section, (HEAD + RUNS * ENTRY) as u64)?;
        let malformed = |why: &str| Error::Malformed { what: "working set", why: why.to_owned() };
        let (head, entries) = bytes.split_first_chunk::<HEAD>().ok_or_else(|| malformed("it has no head"))?;
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        let first = u64::from_le_bytes(*head);
        if !rest.is_empty() || first > entries.len() as u64 {
            return Err(malformed("its length is no whole number of runs, or less than it says"));
        }
        let pages = file.section(SectionKind::MemoryPages);
        let root = file.section(SectionKind::RootImage);
        let mut room =
            [pages, root].into_iter().flatten().map(|section| section.len / PAGE_SIZE).sum::<u64>();
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
            // Runs may have pages in common, but whoever reads them reads no more than the file has.
            let left = room.checked_sub(count);
            room = left.ok_or_else(|| malformed("its runs are together longer than their sections"))?;
            ranges.push((section.offset + place * PAGE_SIZE, count * PAGE_SIZE));
        }
        let first = ranges.iter().take(first as usize).map(|(_, len)| len).sum::<u64>().min(FIRST);
        Ok(Some(Self { ranges, first }))
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

    /// Has the host read what the guest needs until its tasks go on, and waits until it is there. A guest that runs
    /// meanwhile asks for pages in between, and each of its requests waits for all that was asked for before.
    pub fn read_first(&self, file: &File) {
        read(file, self.parts().filter_map(|[first, _]| first));
    }

    /// Has the host read the others, in their order, and waits until most of it is there.
    pub fn read_rest(&self, file: &File) {
        read(file, self.parts().filter_map(|[_, rest]| rest));
    }

    /// Each range as what is waited for, and the rest.
    fn parts(&self) -> impl Iterator<Item = [Option<Range>; 2]> {
        let mut left = self.first;
        self.ranges.iter().map(move |&(start, len)| {
            let first = len.min(left);
            left -= first;
            let part = |start, len| (len > 0).then_some((start, len));
            [part(start, first), part(start + first, len - first)]
        })
    }
}

/// Reads ranges. Of a file that is read from one end to the other the host keeps its memory in large pieces, which costs it a
/// third of the processor time, and reads ahead by itself. The short ones are asked for and not waited for.
fn read(file: &File, ranges: impl Iterator<Item = (u64, u64)>) {
    let mut buffer = vec![0; PIECE as usize];
    for (start, len) in ranges {
        // Hints; what a host does not read now it reads when it is touched.
        if len <= SHORT {
            for at in (0..len).step_by(REQUEST as usize) {
                let piece = std::num::NonZero::new(REQUEST.min(len - at));
                let _ = rustix::fs::fadvise(file, start + at, piece, Advice::WillNeed);
            }
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

    fn words(bytes: &[u8]) -> Vec<u64> {
        bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    #[test]
    fn what_waking_needs_comes_first_and_all_in_the_order_of_need() {
        let run = |place, pages, after| Needed { place, pages, after };
        let hint = Hint {
            waking: 10,
            front: vec![run(0, 10, 1), run(10, 5, 9), run(15, 100, 10), run(115, 7, 30)],
            behind: vec![run(500, 2, 20)],
            in_root: vec![run(7, 1, 2), run(9, 3, 40)],
            early: vec![run(20, 1, 3)],
            early_in_root: vec![run(7, 1, 2)],
        };
        let root = |place: u64| IN_ROOT | place;
        let all = [3, root(7), 1, 20, 1, 0, 15, root(7), 1, 15, 100, 500, 2, 115, 7, root(9), 3];
        assert_eq!(words(&hint.encode(1000)), all);
        // Without room for more than once: 128 pages are needed.
        assert_eq!(words(&hint.encode(129))[..3], [2, root(7), 1]);
        assert_eq!(words(&hint.encode(128))[..3], [1, 0, 15]);
    }

    #[test]
    fn near_runs_are_joined_and_no_others() {
        let run = |place, pages, after| Needed { place, pages, after };
        let runs = vec![run(100, 1, 1), run(0, 2, 5), run(2 + GAP, 1, 3), run(4 + 2 * GAP, 1, 0)];
        assert_eq!(joined(runs), [run(4 + 2 * GAP, 1, 0), run(100, 1, 1), run(0, 3 + GAP, 3)]);
    }

    #[test]
    fn no_more_is_waited_for_than_the_first() {
        let set = WorkingSet { ranges: vec![(0, 10), (20, 30), (90, 5)], first: 15 };
        let parts: Vec<_> = set.parts().collect();
        assert_eq!(parts[0], [Some((0, 10)), None]);
        assert_eq!(parts[1], [Some((20, 5)), Some((25, 25))]);
        assert_eq!(parts[2], [None, Some((90, 5))]);
    }
}
