//! Where the bytes of a machine file go.

use std::io;
use std::os::unix::fs::FileExt;

use artifact::{MachineFile, PAGE_SIZE, Section, SectionKind};
use serde::Serialize;

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
    /// Those of them that hold anything but zeros.
    pub nonzero_memory: u64,
    /// Changed disk, of all snapshots.
    pub disk: u64,
    /// The file's length by what it cannot do without: root images and pages that are not zero.
    pub ratio: f64,
}

/// Measures a file; reads its memory pages.
///
/// # Errors
/// The host's.
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
        if section.kind() == Some(SectionKind::MemoryPages) {
            sizes.nonzero_memory += nonzero(file, section).map_err(io_error("read", file.path()))?;
        }
    }
    let needed = sizes.root_images + sizes.nonzero_memory;
    sizes.ratio = if needed == 0 { 0.0 } else { sizes.file as f64 / needed as f64 };
    Ok(sizes)
}

/// Bytes of a section's pages that are not all zero.
fn nonzero(file: &MachineFile, section: &Section) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE.min(section.len as usize)];
    let (mut at, mut bytes) = (section.offset, 0);
    while at < section.end() {
        let piece = buffer.len().min((section.end() - at) as usize);
        let (piece, _) = buffer.split_at_mut(piece);
        file.file().read_exact_at(piece, at)?;
        let pages = piece.chunks(PAGE_SIZE as usize);
        bytes += pages.filter(|page| page.iter().any(|b| *b != 0)).count() as u64 * PAGE_SIZE;
        at += piece.len() as u64;
    }
    Ok(bytes)
}
