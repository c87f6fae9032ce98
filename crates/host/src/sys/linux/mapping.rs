//! Memory mappings, owned.

#![allow(unsafe_code)] // The one place that talks to mmap.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::mm::{self, MapFlags, ProtFlags};

/// An owned range of address space. Unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range owned by the value; any thread may use or drop it.
unsafe impl Send for Mapping {}
// SAFETY: the methods that take `&self` only hand out the address or ask the kernel.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory of `len` bytes (a multiple of the page size), not reserved and not
    /// resident until touched.
    ///
    /// # Errors
    /// The kernel's: no address space, over a limit.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::anonymous_as(len, MapFlags::empty())
    }

    /// The same below 2 GiB, where an x86-64 instruction names it by a displacement.
    ///
    /// # Errors
    /// The kernel's: no room there, over a limit; `Unsupported` on another processor.
    pub fn anonymous_low(len: usize) -> io::Result<Self> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // MAP_32BIT (mmap(2)), which rustix has no name for.
        Self::anonymous_as(len, MapFlags::from_bits_retain(0x40))
    }

    fn anonymous_as(len: usize, more: MapFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let p = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE | more,
            )
        }?;
        let base = NonNull::new(p.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Replaces `[at, at + len)` of this mapping by a private copy-on-write view of `file` from
    /// `file_offset`. All three are multiples of the page size.
    ///
    /// # Errors
    /// `InvalidInput` when the range is outside the mapping or unaligned; else the kernel's.
    ///
    /// Reading beyond the end of `file` later raises SIGBUS: the caller checks the file's size
    /// and keeps files that others may truncate away from here (the store's are read-only).
    pub fn map_file_private(&self, at: usize, len: usize, file: &File, file_offset: u64) -> io::Result<()> {
        if !self.holds(at, len) || !file_offset.is_multiple_of(rustix::param::page_size() as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: MAP_FIXED replaces only pages of the range that this value owns (checked above).
        unsafe {
            mm::mmap(
                self.base.as_ptr().add(at).cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                file,
                file_offset,
            )
        }?;
        Ok(())
    }

    /// Whether `[at, at + len)` is whole pages of this mapping.
    fn holds(&self, at: usize, len: usize) -> bool {
        let page = rustix::param::page_size();
        let fits = at.checked_add(len).is_some_and(|end| end <= self.len);
        fits && len > 0 && at.is_multiple_of(page) && len.is_multiple_of(page)
    }

    /// Gives the memory of `[at, at + len)` back to the host: it reads as zeros then, or, where a file was mapped,
    /// as the file has it. Whole pages.
    ///
    /// # Errors
    /// `InvalidInput` when the range is outside the mapping or unaligned; else the kernel's.
    pub fn give_back(&self, at: usize, len: usize) -> io::Result<()> {
        if !self.holds(at, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: only pages of the range that this value owns (checked above) change, to bytes that are as good as
        // any; only raw pointers ever refer to them.
        unsafe { mm::madvise(self.base.as_ptr().add(at).cast(), len, mm::Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// Whether the host, where a touched page of a mapped file is not in its memory, reads what lies around it, too, as it
    /// does of itself, or this page only. Whole pages.
    ///
    /// # Errors
    /// As [`Mapping::give_back`].
    pub fn read_around(&self, at: usize, len: usize, around: bool) -> io::Result<()> {
        if !self.holds(at, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let advice = if around { mm::Advice::Normal } else { mm::Advice::Random };
        // SAFETY: of the range, which this value owns (checked above), no byte changes.
        unsafe { mm::madvise(self.base.as_ptr().add(at).cast(), len, advice) }?;
        Ok(())
    }

    /// Replaces `[at, at + len)` by fresh zeroed memory that is not resident, whatever was mapped there. Whole
    /// pages.
    ///
    /// # Errors
    /// As [`Mapping::give_back`]; the range is as it was then.
    pub fn renew(&self, at: usize, len: usize) -> io::Result<()> {
        if !self.holds(at, len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: MAP_FIXED replaces only pages of the range that this value owns (checked above).
        unsafe {
            mm::mmap_anonymous(
                self.base.as_ptr().add(at).cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            )
        }?;
        Ok(())
    }

    /// First byte.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is owned by this value and nothing may use it after the drop.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
