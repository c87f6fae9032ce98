//! Guest memory as pages in a machine file.

use artifact::extents::{USUAL_EXTENTS, USUAL_OVERHEAD_PERMILLE};
use artifact::{ExtentMap, MachineFile, MachineFileWriter, PageSet, SectionHead, SectionKind, plan_extents};
use guestmem::{GuestMemory, MMIO_HOLE_START, PAGE_SIZE};

use crate::Error;

/// Version of the `MemoryPages` section: raw 4 KiB pages.
const PAGES_VERSION: u32 = 1;
/// Largest map that is read: two million extents.
const MAP_CAP: u64 = 64 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Pages that hold anything but zeros.
    pub nonzero_pages: u64,
    /// Pages in the file: these and the few zero pages that join extents.
    pub stored_pages: u64,
    pub extents: usize,
}

/// Writes the two memory sections. Nothing may write guest memory meanwhile.
///
/// # Errors
/// The file's.
pub fn write_memory(writer: &mut MachineFileWriter, memory: &GuestMemory) -> Result<MemoryStats, Error> {
    let mut nonzero = PageSet::new(memory.page_count() as u64);
    for page in 0..memory.page_count() {
        if !memory.page_is_zero(page) {
            nonzero.insert(page as u64);
        }
    }
    let barrier = [MMIO_HOLE_START / PAGE_SIZE];
    let extents = plan_extents(&nonzero, &barrier, USUAL_EXTENTS, USUAL_OVERHEAD_PERMILLE);
    let map = ExtentMap { bound: memory.page_count() as u64, extents };
    let head = SectionHead::new(SectionKind::MemoryMap, ExtentMap::VERSION);
    writer.add_bytes(head, &map.encode())?;
    let stored = map.stored_pages();
    let head = SectionHead::new(SectionKind::MemoryPages, PAGES_VERSION);
    let by_place = Places::new(&map);
    writer.add_filled(head, stored * PAGE_SIZE, 0, |offset, buffer| by_place.fill(memory, offset, buffer))?;
    Ok(MemoryStats { nonzero_pages: nonzero.count(), stored_pages: stored, extents: map.extents.len() })
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

    fn fill(&self, memory: &GuestMemory, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let (chunks, rest) = buffer.as_chunks_mut::<{ PAGE_SIZE as usize }>();
        if !rest.is_empty() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        for (i, chunk) in chunks.iter_mut().enumerate() {
            let page = self.page_at(offset / PAGE_SIZE + i as u64).ok_or(std::io::ErrorKind::InvalidInput)?;
            memory.read_page(page as usize, chunk);
        }
        Ok(())
    }
}

/// Brings a snapshot's pages to life in fresh guest memory: private, copy-on-write mappings of the
/// file itself; nothing is read.
///
/// # Errors
/// [`Error::Malformed`] when the map does not fit this memory; the file's; the host's.
pub fn map_memory(file: &MachineFile, memory: &GuestMemory) -> Result<usize, Error> {
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
    for extent in &map.extents {
        // In range: the parser checked every extent against `bound`.
        let gpa = memory.page_gpa(extent.start as usize);
        let (len, at) = (extent.pages * PAGE_SIZE, pages.offset + extent.file_page * PAGE_SIZE);
        memory
            .map_file(gpa, len, file.file(), at)
            .map_err(|source| Error::Map { pages: extent.pages, source })?;
    }
    Ok(map.extents.len())
}
