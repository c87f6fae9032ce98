//! Guest memory as pages in a machine file.

use artifact::extents::{USUAL_EXTENTS, USUAL_OVERHEAD_PERMILLE};
use artifact::{
    Extent, ExtentMap, MachineFile, MachineFileWriter, PageSet, SectionHead, SectionKind, Source,
    plan_extents,
};
use guestmem::{GuestMemory, MMIO_HOLE_START, PAGE_SIZE};

use crate::Error;
use crate::pieces::{each_piece, runs_in};
use crate::shared::{RootPages, Shared};
use crate::still::StillMemory;

/// Version of the `MemoryPages` section: raw 4 KiB pages.
pub(crate) const PAGES_VERSION: u32 = 1;
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
        let (candidates, parent, most, overhead) = match self {
            Pages::All => (still.wanted().clone(), None, USUAL_EXTENTS, USUAL_OVERHEAD_PERMILLE),
            Pages::Changes { parent, above } => {
                let mut changed = still.dirty().clone();
                changed.unite(above);
                (changed, Some(parent), CHANGES_EXTENTS, CHANGES_OVERHEAD_PERMILLE)
            }
        };
        let pages = still.page_count() as u64;
        let words = each_piece(pages, |piece| {
            let first = piece.start;
            let mut store = PageSet::new(piece.end - first);
            for (start, pages) in runs_in(&candidates, piece) {
                for page in start..start + pages {
                    // A page that became zeros must hide the parent's.
                    if parent.is_some_and(|p| p.contains(page)) || !still.is_zero(page as usize)? {
                        store.insert(page - first);
                    }
                }
            }
            Ok(store.words().to_vec())
        })?;
        Ok((PageSet::from_words(words.concat(), pages), most, overhead))
    }
}

/// Writes the two memory sections: the instant that `still` holds, which ends with this. `base`: a file whose root
/// image the written file has, too, so that pages of it are not stored again.
///
/// # Errors
/// The file's.
pub fn write_memory(
    writer: &mut MachineFileWriter,
    still: StillMemory,
    pages: Pages<'_>,
    base: Option<&MachineFile>,
) -> Result<MemoryStats, Error> {
    let (store, most, overhead) = pages.plan(&still).map_err(Error::Keep)?;
    let barrier = [MMIO_HOLE_START / PAGE_SIZE];
    let shared = match pages {
        Pages::All => {
            let root = base.map(RootPages::of).transpose().map_err(Error::Keep)?.flatten();
            Shared::find(&still, &store, &barrier, root.as_ref()).map_err(Error::Keep)?
        }
        Pages::Changes { .. } => Shared::default(),
    };
    let planned = plan_extents(&shared.rest(&store), &shared.barriers(&barrier), most, overhead);
    let map = ExtentMap { bound: still.page_count() as u64, extents: shared.lay(&planned) };
    let head = SectionHead::new(SectionKind::MemoryMap, map.version());
    writer.add_bytes(head, &map.encode())?;
    let stored = map.stored_pages();
    let head = SectionHead::new(SectionKind::MemoryPages, PAGES_VERSION);
    let by_place = Places(&planned);
    writer.add_filled(head, stored * PAGE_SIZE, 0, |offset, buffer| by_place.fill(&still, offset, buffer))?;
    Ok(MemoryStats {
        nonzero_pages: store.count(),
        stored_pages: stored,
        extents: map.extents.len(),
        kept_pages: still.kept_pages(),
    })
}

/// Stored extents by their place in the file, to fill any piece of it: `plan_extents` lays places out in page order.
struct Places<'a>(&'a [Extent]);

impl Places<'_> {
    fn page_at(&self, place: u64) -> Option<u64> {
        let at = self.0.partition_point(|e| e.file_page + e.pages <= place);
        let extent = self.0.get(at)?;
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

/// Where a snapshot's pages of memory lie in its file.
pub(crate) struct Stored {
    pub(crate) map: ExtentMap,
    /// Where the two sections begin that a page may be in.
    pub(crate) pages: u64,
    root: u64,
}

impl Stored {
    pub(crate) fn read(file: &MachineFile) -> Result<Self, Error> {
        let pages = file.require(SectionKind::MemoryPages, 0)?;
        let head = file.require(SectionKind::MemoryMap, 0)?;
        if pages.version != PAGES_VERSION {
            return Err(Error::Version { what: "memory", found: pages.version, reads: PAGES_VERSION });
        }
        if head.version > ExtentMap::VERSION {
            return Err(Error::Version {
                what: "memory map",
                found: head.version,
                reads: ExtentMap::VERSION,
            });
        }
        let bytes = file.read_section(head, MAP_CAP)?;
        let (root, root_len) = file.section(SectionKind::RootImage).map_or((0, 0), |s| (s.offset, s.len));
        let map = ExtentMap::parse(head.version, &bytes, pages.len, root_len);
        Ok(Self { map: map.map_err(|problem| file.error(problem))?, pages: pages.offset, root })
    }

    fn of_machine(file: &MachineFile, memory: &GuestMemory) -> Result<Self, Error> {
        let stored = Self::read(file)?;
        if stored.map.bound != memory.page_count() as u64 {
            let why = format!("{} pages, but the machine has {}", stored.map.bound, memory.page_count());
            return Err(Error::Malformed { what: "memory map", why });
        }
        Ok(stored)
    }

    /// Place of an extent in the file, in bytes. In range: the parser checked each against its section.
    fn place(&self, extent: &Extent) -> u64 {
        let section = match extent.source {
            Source::Pages => self.pages,
            Source::Root => self.root,
        };
        section + extent.file_page * PAGE_SIZE
    }

    /// Extents are in range of the memory: the parser checked each against the bound.
    fn bring(&self, file: &MachineFile, memory: &GuestMemory, extents: &[Extent]) -> Result<(), Error> {
        let pieces = extents.iter().map(|extent| {
            (memory.page_gpa(extent.start as usize), extent.pages * PAGE_SIZE, self.place(extent))
        });
        let pages = extents.iter().map(|extent| extent.pages).sum();
        memory.map_file_later(file.file(), pieces).map_err(|source| Error::Map { pages, source })
    }
}

/// A piece of a file that pages of memory lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPages {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How many pages it has.
    pub pages: u64,
    pub source: Source,
}

/// Where the memory of a file's snapshot lies, in the order of its pages; a piece may be there for several.
///
/// # Errors
/// [`Error::Version`]; the file's.
pub fn stored_pages(file: &MachineFile) -> Result<Vec<StoredPages>, Error> {
    let stored = Stored::read(file)?;
    let piece = |e: &Extent| StoredPages { offset: stored.place(e), pages: e.pages, source: e.source };
    Ok(stored.map.extents.iter().map(piece).collect())
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
    let above = Stored::of_machine(file, memory)?;
    above.bring(file, memory, &above.map.extents)?;
    let Some(parent) = parent else { return Ok(Origin { parent: above.map, above: ExtentMap::default() }) };
    let below = Stored::of_machine(parent, memory)?;
    below.bring(parent, memory, &below.map.uncovered(&above.map))?;
    Ok(Origin { parent: below.map, above: above.map })
}
