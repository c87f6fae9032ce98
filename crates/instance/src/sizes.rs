//! Where the bytes of a machine file go.

use std::io;
use std::os::unix::fs::FileExt;

use artifact::{MachineFile, PAGE_SIZE, SectionKind};
use serde::Serialize;
use snapshot::StoredPages;

use crate::error::{Error, io_error};

/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// The parts of a machine file, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FileSizes {
    pub file: u64,
    /// Kernel and initramfs.
    pub boot: u64,
    pub root_images: u64,
    /// Memory pages as stored, of all snapshots.
    pub memory: u64,
    /// Memory that takes no room: pages that the root image has, or that are stored once for several.
    pub shared_memory: u64,
    /// Pages of all snapshots' memories that hold anything but zeros, stored or shared.
    pub nonzero_memory: u64,
    /// Changed disk, of all snapshots.
    pub disk: u64,
    /// The file's length by what it stands for: root images and pages that are not zero.
    pub ratio: f64,
}

/// Measures a file; reads its memory pages.
///
/// # Errors
/// The file's, the host's.
pub fn sizes(file: &MachineFile) -> Result<FileSizes, Error> {
    let mut sizes = FileSizes { file: file.len(), ..FileSizes::default() };
    for section in file.sections() {
        let part = match section.kind() {
            Some(SectionKind::Kernel | SectionKind::Initramfs) => &mut sizes.boot,
            Some(SectionKind::RootImage) => &mut sizes.root_images,
            Some(SectionKind::MemoryPages) => &mut sizes.memory,
            Some(SectionKind::DiskDeltaPages) => &mut sizes.disk,
            _ => continue,
        };
        *part += section.len;
    }
    let mut pages = 0;
    for point in snapshot::points(file).map_err(machine::Error::from)? {
        let alone = snapshot::select(file.again()?, &point);
        for piece in snapshot::stored_pages(&alone).map_err(machine::Error::from)? {
            pages += piece.pages;
            sizes.nonzero_memory += nonzero(file, piece).map_err(io_error("read", file.path()))?;
        }
    }
    sizes.shared_memory = (pages * PAGE_SIZE).saturating_sub(sizes.memory);
    let needed = sizes.root_images + sizes.nonzero_memory;
    sizes.ratio = if needed == 0 { 0.0 } else { sizes.file as f64 / needed as f64 };
    Ok(sizes)
}

/// Bytes of the pages that are not all zero.
fn nonzero(file: &MachineFile, pages: StoredPages) -> io::Result<u64> {
    let end = pages.offset + pages.pages * PAGE_SIZE;
    let mut buffer = vec![0; PIECE.min((end - pages.offset) as usize)];
    let (mut at, mut bytes) = (pages.offset, 0);
    while at < end {
        let piece = buffer.len().min((end - at) as usize);
        let (piece, _) = buffer.split_at_mut(piece);
        file.file().read_exact_at(piece, at)?;
        let pages = piece.chunks(PAGE_SIZE as usize);
        bytes += pages.filter(|page| page.iter().any(|b| *b != 0)).count() as u64 * PAGE_SIZE;
        at += piece.len() as u64;
    }
    Ok(bytes)
}
