//! The trait that all layers share.

use std::io;

/// Bytes in a sector, the unit of virtio-blk.
pub const SECTOR: u64 = 512;

/// Largest disk: 4 TiB. Keeps every computation and table far from its limits.
pub const MAX_SIZE: u64 = 4 << 40;

/// Random-access bytes of a fixed size. Callable from several threads.
///
/// A range outside the disk is `InvalidInput`; a host failure comes through as it is, and the
/// guest sees an I/O error.
pub trait Disk: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        true
    }

    /// Fills `to` from `offset`.
    ///
    /// # Errors
    /// See the trait.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at `offset`. After an error the range holds old or new bytes.
    ///
    /// # Errors
    /// See the trait; `ReadOnlyFilesystem` where nothing can be written.
    fn write_at(&self, _offset: u64, _from: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// What was written before survives what this disk promises to survive.
    ///
    /// # Errors
    /// See the trait.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// The range is no longer needed: whole clusters of it read as zeros and cost nothing, the
    /// rest stays.
    ///
    /// # Errors
    /// As for writing.
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// Makes the whole range read as zeros.
    ///
    /// # Errors
    /// As for writing.
    fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// `InvalidInput` unless `[offset, offset + len)` lies in `size` bytes.
pub(crate) fn check_range(size: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => {
            let what = format!("range {offset:#x}+{len:#x} beyond the end of a disk of {size:#x} bytes");
            Err(io::Error::new(io::ErrorKind::InvalidInput, what))
        }
    }
}
