//! A file, or a part of one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};

use crate::api::{Disk, MAX_SIZE, check_range};

/// Bytes `[start, start + size)` of a file.
#[derive(Clone, Debug)]
pub struct FileDisk {
    file: Arc<File>,
    start: u64,
    size: u64,
    writable: bool,
}

impl FileDisk {
    /// A read-only part of a file, as of a machine file in the store.
    ///
    /// # Errors
    /// `InvalidInput` when the part is empty, larger than [`MAX_SIZE`] or not inside the file.
    pub fn section(file: Arc<File>, start: u64, size: u64) -> io::Result<Self> {
        check_range(file.metadata()?.len(), start, size)?;
        Self::checked(file, start, size, false)
    }

    /// A whole file that is written in place: durable data outside the machine file.
    ///
    /// # Errors
    /// `InvalidInput` when it is empty or larger than [`MAX_SIZE`].
    pub fn writable(file: File) -> io::Result<Self> {
        Self::whole(Arc::new(file), true)
    }

    pub(crate) fn whole(file: Arc<File>, writable: bool) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Self::checked(file, 0, size, writable)
    }

    fn checked(file: Arc<File>, start: u64, size: u64, writable: bool) -> io::Result<Self> {
        if size == 0 || size > MAX_SIZE {
            let what = format!("a disk of {size} bytes: 1 byte to 4 TiB are possible");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(Self { file, start, size, writable })
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        check_range(self.size, offset, len)
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, to.len() as u64)?;
        self.file.read_exact_at(to, self.start + offset)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check_write(offset, from.len() as u64)?;
        self.file.write_all_at(from, self.start + offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.writable { self.file.sync_data() } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        punch(&self.file, self.start + offset, len).map(drop)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if punch(&self.file, self.start + offset, len)? {
            return Ok(());
        }
        let zeros = [0; 64 * 1024];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..n as usize], self.start + offset + done)?;
            done += n;
        }
        Ok(())
    }
}

/// Gives a range back to the file system; it then reads as zeros. `false` where the file system
/// cannot do that.
pub(crate) fn punch(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    if len == 0 {
        return Ok(true);
    }
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        Ok(()) => Ok(true),
        Err(e) if e == rustix::io::Errno::OPNOTSUPP || e == rustix::io::Errno::NODEV => Ok(false),
        Err(e) => Err(e.into()),
    }
}
