//! Typed and bulk access by guest-physical address, through the write gate.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use crate::memory::{Error, GuestMemory, PAGE_SIZE};

/// Integers with a fixed little-endian layout.
pub trait Pod: Copy {
    /// Bytes.
    const SIZE: usize;
    fn from_le(bytes: &[u8]) -> Self;
    fn to_le(self, bytes: &mut [u8]);
}

macro_rules! pod {
    ($($t:ty),*) => {$(
        impl Pod for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline]
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                <$t>::from_le_bytes(raw)
            }
            #[inline]
            fn to_le(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
pod!(u8, u16, u32, u64, u128);

impl GuestMemory {
    fn ram_offset(&self, gpa: u64, len: usize) -> Result<usize, Error> {
        let len = len as u64;
        self.offset(gpa, len).ok_or(Error::NotRam { gpa, len })
    }

    /// Whether all of `[gpa, gpa + len)` is RAM in one piece.
    pub fn is_ram(&self, gpa: u64, len: u64) -> bool {
        self.offset(gpa, len).is_some()
    }

    /// Copies guest bytes out.
    ///
    /// # Errors
    /// [`Error::NotRam`]; nothing was copied then.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), Error> {
        self.ram().read(self.ram_offset(gpa, to.len())?, to);
        Ok(())
    }

    /// Copies bytes into the guest.
    ///
    /// # Errors
    /// [`Error::NotRam`]; nothing was written then.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), Error> {
        let at = self.ram_offset(gpa, from.len())?;
        self.before_write_range(at, from.len());
        self.ram().write(at, from);
        Ok(())
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// [`Error::NotRam`]; nothing was written then.
    pub fn fill_zero(&self, gpa: u64, len: usize) -> Result<(), Error> {
        let at = self.ram_offset(gpa, len)?;
        self.before_write_range(at, len);
        self.ram().zero(at, len);
        Ok(())
    }

    /// Reads a little-endian integer, any alignment.
    ///
    /// # Errors
    /// [`Error::NotRam`].
    pub fn read_le<T: Pod>(&self, gpa: u64) -> Result<T, Error> {
        let mut raw = [0u8; 16];
        let raw = &mut raw[..T::SIZE];
        self.read(gpa, raw)?;
        Ok(T::from_le(raw))
    }

    /// Writes a little-endian integer, any alignment.
    ///
    /// # Errors
    /// [`Error::NotRam`].
    pub fn write_le<T: Pod>(&self, gpa: u64, value: T) -> Result<(), Error> {
        let mut raw = [0u8; 16];
        let raw = &mut raw[..T::SIZE];
        value.to_le(raw);
        self.write(gpa, raw)
    }

    fn atomic_offset(&self, gpa: u64, size: usize) -> Result<usize, Error> {
        if !gpa.is_multiple_of(size as u64) {
            return Err(Error::NotRam { gpa, len: size as u64 });
        }
        self.ram_offset(gpa, size)
    }

    /// Atomic load, acquire, of an aligned u16 (virtqueue indexes).
    ///
    /// # Errors
    /// [`Error::NotRam`], also when unaligned.
    pub fn load_u16(&self, gpa: u64) -> Result<u16, Error> {
        Ok(self.ram().load_u16(self.atomic_offset(gpa, 2)?, Ordering::Acquire))
    }

    /// Atomic store, release, of an aligned u16.
    ///
    /// # Errors
    /// [`Error::NotRam`], also when unaligned.
    pub fn store_u16(&self, gpa: u64, value: u16) -> Result<(), Error> {
        let at = self.atomic_offset(gpa, 2)?;
        self.before_write_range(at, 2);
        self.ram().store_u16(at, value, Ordering::Release);
        Ok(())
    }

    /// Atomic load, acquire, of an aligned u32.
    ///
    /// # Errors
    /// [`Error::NotRam`], also when unaligned.
    pub fn load_u32(&self, gpa: u64) -> Result<u32, Error> {
        Ok(self.ram().load_u32(self.atomic_offset(gpa, 4)?, Ordering::Acquire))
    }

    /// Atomic store, release, of an aligned u32.
    ///
    /// # Errors
    /// [`Error::NotRam`], also when unaligned.
    pub fn store_u32(&self, gpa: u64, value: u32) -> Result<(), Error> {
        let at = self.atomic_offset(gpa, 4)?;
        self.before_write_range(at, 4);
        self.ram().store_u32(at, value, Ordering::Release);
        Ok(())
    }

    /// Atomic compare-and-exchange of an aligned u64 (page-table accessed and dirty bits).
    /// `Ok(Ok(old))` when it was exchanged, `Ok(Err(found))` when not.
    ///
    /// # Errors
    /// [`Error::NotRam`], also when unaligned.
    pub fn compare_exchange_u64(&self, gpa: u64, old: u64, new: u64) -> Result<Result<u64, u64>, Error> {
        let at = self.atomic_offset(gpa, 8)?;
        self.before_write_range(at, 8);
        Ok(self.ram().compare_exchange_u64(at, old, new))
    }

    /// Whether a page holds only zeros.
    pub fn page_is_zero(&self, page: usize) -> bool {
        self.ram().is_zero(page * PAGE_SIZE as usize, PAGE_SIZE as usize)
    }

    /// Copies a whole page out.
    pub fn read_page(&self, page: usize, to: &mut [u8; PAGE_SIZE as usize]) {
        self.ram().read(page * PAGE_SIZE as usize, to);
    }

    /// Reads from a file straight into guest memory; returns the bytes read (short at its end).
    ///
    /// # Errors
    /// `InvalidInput` when the range is not RAM; else the host's.
    pub fn read_from_file(&self, gpa: u64, len: usize, file: &File, offset: u64) -> io::Result<usize> {
        let at = self.ram_offset(gpa, len).map_err(io::Error::other)?;
        self.before_write_range(at, len);
        let mut done = 0;
        let mut chunk = [0u8; 16 * 1024];
        while done < len {
            let n = (len - done).min(chunk.len());
            let got = file.read_at(&mut chunk[..n], offset + done as u64)?;
            if got == 0 {
                break;
            }
            self.ram().write(at + done, &chunk[..got]);
            done += got;
        }
        Ok(done)
    }

    /// Writes guest memory to a file.
    ///
    /// # Errors
    /// `InvalidInput` when the range is not RAM; else the host's.
    pub fn write_to_file(&self, gpa: u64, len: usize, file: &File, offset: u64) -> io::Result<()> {
        let at = self.ram_offset(gpa, len).map_err(io::Error::other)?;
        let mut done = 0;
        let mut chunk = [0u8; 16 * 1024];
        while done < len {
            let n = (len - done).min(chunk.len());
            self.ram().read(at + done, &mut chunk[..n]);
            file.write_all_at(&chunk[..n], offset + done as u64)?;
            done += n;
        }
        Ok(())
    }
}
