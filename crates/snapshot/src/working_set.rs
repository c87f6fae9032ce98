//! The pages that a resume touches first: laid together when a file is built, read ahead when it is resumed.
//!
//! Problem: from a disk, with nothing of the file in the host's memory, a resume waits for each page that it touches, one
//! after the other. Strategy: a build wakes the machine once and notes what it touches (`instance/vmm/working_set.rs`);
//! these pages lie at the front of the section of pages, and a small section says which they are, and which pages of
//! the root image belong to them. Who resumes asks for them all at once and goes on. Invariants: it is a hint. What the
//! section says is bounded by the file, nothing of it reaches the guest, and a file without it resumes the same.
//! docs/formats/machine-file.md, section 6.3. Next: `machine/restore.rs`.

use std::fs::File;
use std::io::IoSliceMut;

use artifact::{
    Extent, MachineFile, MachineFileWriter, PageSet, SectionFlags, SectionHead, SectionKind, plan_extents,
};
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
/// Bytes that are asked for at a time. Linux reads of one request no more than the device's read-ahead window, or its
/// largest transfer where that is more, and passes the rest over (mm/readahead.c, force_page_cache_ra): this is the
/// window's default, and smaller than any transfer.
const REQUEST: u64 = 128 << 10;
/// How many pages of the first run are looked at to know whether it is in the host's memory.
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

/// Writes the memory of `from` as it is there, but with the `touched` pages in front, and which they are.
///
/// # Errors
/// The files'.
pub fn write_laid_out(
    writer: &mut MachineFileWriter,
    from: &MachineFile,
    touched: &PageSet,
) -> Result<WorkingSetStats, Error> {
    let stored = Stored::read(from)?;
    let laid = stored.map.lay_first(&stored.map.places_of(touched));
    let root_pages = from.section(SectionKind::RootImage).map_or(0, |root| root.len / PAGE_SIZE);
    let mut behind = laid.map.places_of(touched);
    behind.remove_run(0, laid.front);
    let (behind, in_root) = (joined(&behind), joined(&stored.map.root_places_of(touched, root_pages)));
    let head = SectionHead::new(SectionKind::MemoryMap, laid.map.version());
    writer.add_bytes(head, &laid.map.encode())?;
    let head = SectionHead::new(SectionKind::MemoryPages, PAGES_VERSION);
    let place = |(place, pages): &(u64, u64)| (stored.pages + place * PAGE_SIZE, pages * PAGE_SIZE);
    let ranges: Vec<(u64, u64)> = laid.order.iter().map(place).collect();
    writer.add_file_ranges(head, from.file(), &ranges)?;
    let head = SectionHead::new(SectionKind::WorkingSet, VERSION);
    let head = SectionHead { flags: SectionFlags::IGNORABLE, ..head };
    writer.add_bytes(head, &encode(laid.front, &behind, &in_root))?;
    let root_pages = in_root.iter().map(|run| run.pages).sum();
    Ok(WorkingSetStats { front_pages: laid.front, root_pages, extents: laid.map.extents.len() })
}

/// The runs of places that are read ahead where they are.
fn joined(places: &PageSet) -> Vec<Extent> {
    let mut runs = plan_extents(places, &[], STAYING, JOIN_PERMILLE);
    runs.truncate(STAYING);
    runs
}

fn encode(front: u64, behind: &[Extent], in_root: &[Extent]) -> Vec<u8> {
    let front = (front > 0).then_some((0, front));
    let behind = behind.iter().map(|run| (run.start, run.pages));
    let root = in_root.iter().map(|run| (run.start | IN_ROOT, run.pages));
    let words = front.into_iter().chain(behind).chain(root).flat_map(|(place, pages)| [place, pages]);
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
        // The first is by far the largest.
        self.ranges.first().is_some_and(|&(start, len)| {
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

    /// Has the host read it all, and waits until it was asked for, not until it is there.
    pub fn read_ahead(&self, file: &File) {
        for (start, len) in self.requests() {
            // A hint; a host that does not take it reads what is touched.
            let _ = rustix::fs::fadvise(file, start, std::num::NonZero::new(len), Advice::WillNeed);
        }
    }

    /// The ranges, cut to what the host reads at one request.
    fn requests(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().flat_map(|&(start, len)| {
            (0..len).step_by(REQUEST as usize).map(move |at| (start + at, REQUEST.min(len - at)))
        })
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
    fn all_of_it_is_asked_for_in_pieces_that_the_host_reads_whole() {
        let set =
            WorkingSet { ranges: vec![(4096, 4096), (1 << 20, 2 * REQUEST + 8192), (9 << 20, REQUEST)] };
        let asked: Vec<_> = set.requests().collect();
        let second = 1 << 20;
        let pieces = [(second, REQUEST), (second + REQUEST, REQUEST), (second + 2 * REQUEST, 8192)];
        assert_eq!(asked, [&[(4096, 4096)][..], &pieces, &[(9 << 20, REQUEST)]].concat());
    }
}
