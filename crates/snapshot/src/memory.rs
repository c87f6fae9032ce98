//! Guest memory as pages in a machine file.

use artifact::extents::{USUAL_EXTENTS, USUAL_OVERHEAD_PERMILLE};
use artifact::{
    Extent, ExtentMap, MachineFile, MachineFileWriter, PageSet, SectionHead, SectionKind, plan_extents,
};
use guestmem::{GuestMemory, MMIO_HOLE_START, PAGE_SIZE};

use crate::Error;
use crate::still::StillMemory;

/// Version of the `MemoryPages` section: raw 4 KiB pages.
const PAGES_VERSION: u32 = 1;
/// Largest map that is read: two million extents.
const MAP_CAP: u64 = 64 << 20;
/// Pages that did not change, stored to join extents of changes, in thousandths of the changed ones,
/// and the extents to aim for: each costs up to three mappings, for it divides the parent's.
const CHANGES_OVERHEAD_PERMILLE: u32 = 2000;
const CHANGES_EXTENTS: usize = 32;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Pages that hold anything but zeros (of changes: changed pages).
    pub nonzero_pages: u64,
    /// Pages in the file: these and the few others that join extents.
    pub stored_pages: u64,
    pub extents: usize,
    /// Pages that the guest wrote before they were read, and that were copied aside for that.
    pub kept_pages: u64,
}

/// Which pages are written.
#[derive(Clone, Copy, Debug)]
pub enum Pages<'a> {
    /// All that hold anything.
    All,
    /// Those that may differ from the parent's, a file that has these `pages`; `above` it lie
    /// these, mapped from elsewhere.
    Changes { parent: &'a PageSet, above: &'a PageSet },
}

impl Pages<'_> {
    /// The pages to store, and by how many others, in thousandths, they may be joined
    /// to how many extents.
    fn plan(self, still: &StillMemory) -> std::io::Result<(PageSet, usize, u32)> {
        let mut store = PageSet::new(still.page_count() as u64);
        let (candidates, parent, most, overhead) = match self {
            Pages::All => (still.wanted().clone(), None, USUAL_EXTENTS, USUAL_OVERHEAD_PERMILLE),
            Pages::Changes { parent, above } => {
                let mut changed = still.dirty().clone();
                changed.unite(above);
                (changed, Some(parent), CHANGES_EXTENTS, CHANGES_OVERHEAD_PERMILLE)
            }
        };
        for (start, pages) in candidates.runs() {
            for page in start..start + pages {
                // A page that became zeros must hide the parent's.
                if parent.is_some_and(|p| p.contains(page)) || !still.is_zero(page as usize)? {
                    store.insert(page);
                }
            }
        }
        Ok((store, most, overhead))
    }
}

/// Writes the two memory sections: the instant that `still` holds, which ends with this.
///
/// # Errors
/// The file's.
pub fn write_memory(
    writer: &mut MachineFileWriter,
    still: StillMemory,
    pages: Pages<'_>,
) -> Result<MemoryStats, Error> {
    let (store, most, overhead) = pages.plan(&still).map_err(Error::Keep)?;
    let barrier = [MMIO_HOLE_START / PAGE_SIZE];
    let extents = plan_extents(&store, &barrier, most, overhead);
    let map = ExtentMap { bound: still.page_count() as u64, extents };
    let head = SectionHead::new(SectionKind::MemoryMap, ExtentMap::VERSION);
    writer.add_bytes(head, &map.encode())?;
    let stored = map.stored_pages();
    let head = SectionHead::new(SectionKind::MemoryPages, PAGES_VERSION);
    let by_place = Places::new(&map);
    writer.add_filled(head, stored * PAGE_SIZE, 0, |offset, buffer| by_place.fill(&still, offset, buffer))?;
    Ok(MemoryStats {
        nonzero_pages: store.count(),
        stored_pages: stored,
        extents: map.extents.len(),
        kept_pages: still.kept_pages(),
    })
}

/// Extents by their place in the file, to fill any piece of it.
struct Places<'a> {
    map: &'a ExtentMap,
}

impl<'a> Places<'a> {
    /// `plan_extents` lays places out in page order, so the map itself is sorted by place.
    fn new(map: &'a ExtentMap) -> Self {
        Self { map }
    }

    fn page_at(&self, place: u64) -> Option<u64> {
        let at = self.map.extents.partition_point(|e| e.file_page + e.pages <= place);
        let extent = self.map.extents.get(at)?;
        Some(extent.start + place.checked_sub(extent.file_page)?)
    }

    fn fill(&self, still: &StillMemory, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let (chunks, rest) = buffer.as_chunks_mut::<{ PAGE_SIZE as usize }>();
        if !rest.is_empty() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        for (i, chunk) in chunks.iter_mut().enumerate() {
            let page = self.page_at(offset / PAGE_SIZE + i as u64).ok_or(std::io::ErrorKind::InvalidInput)?;
            still.read_page(page as usize, chunk)?;
        }
        Ok(())
    }
}

/// The memory of a file: which pages lie where.
fn read_map(file: &MachineFile, memory: &GuestMemory) -> Result<(ExtentMap, u64), Error> {
    let pages = file.require(SectionKind::MemoryPages, 0)?;
    let head = file.require(SectionKind::MemoryMap, 0)?;
    if head.version != ExtentMap::VERSION || pages.version != PAGES_VERSION {
        let found = head.version.max(pages.version);
        return Err(Error::Version { what: "memory", found, reads: PAGES_VERSION });
    }
    let bytes = file.read_section(head, MAP_CAP)?;
    let map = ExtentMap::parse(&bytes, pages.len).map_err(|problem| file.error(problem))?;
    if map.bound != memory.page_count() as u64 {
        let why = format!("{} pages, but the machine has {}", map.bound, memory.page_count());
        return Err(Error::Malformed { what: "memory map", why });
    }
    Ok((map, pages.offset))
}

/// Where a restored machine's memory came from.
#[derive(Debug, Default)]
pub struct Origin {
    /// Of the parent, or of the one file that holds everything.
    pub parent: ExtentMap,
    /// Of the file that builds on the parent.
    pub above: ExtentMap,
}

/// Brings a snapshot's pages to life in fresh guest memory: private, copy-on-write mappings of the
/// files themselves, made when a page is touched; nothing is read. `parent`: the file that `file`
/// builds on.
///
/// # Errors
/// [`Error::Malformed`] when a map does not fit this memory; the file's; the host's.
pub fn map_memory(
    file: &MachineFile,
    parent: Option<&MachineFile>,
    memory: &GuestMemory,
) -> Result<Origin, Error> {
    let (above, pages) = read_map(file, memory)?;
    map_extents(memory, file, pages, &above.extents)?;
    let Some(parent) = parent else { return Ok(Origin { parent: above, above: ExtentMap::default() }) };
    let (below, pages) = read_map(parent, memory)?;
    map_extents(memory, parent, pages, &below.uncovered(&above))?;
    Ok(Origin { parent: below, above })
}

/// Extents are in range: the parser checked each against the bound.
fn map_extents(
    memory: &GuestMemory,
    file: &MachineFile,
    pages: u64,
    extents: &[Extent],
) -> Result<(), Error> {
    let pieces = extents.iter().map(|extent| {
        let at = pages + extent.file_page * PAGE_SIZE;
        (memory.page_gpa(extent.start as usize), extent.pages * PAGE_SIZE, at)
    });
    let pages = extents.iter().map(|extent| extent.pages).sum();
    memory.map_file_later(file.file(), pieces).map_err(|source| Error::Map { pages, source })
}
