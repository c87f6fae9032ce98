//! Memory for generated code: never writable and executable at one address.
//!
//! The pages have two mappings: one that is written through, one that is executed. Nothing is
//! resident before it is written.

#![allow(unsafe_code)] // mmap, and copies through the writable mapping.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{self, MapFlags, ProtFlags};

/// A region of code: written by its owner, executed by whoever has the owner's permission.
///
/// On x86-64 a thread that executes what it has written must serialise in between (SDM vol. 3, 9.1.3:
/// code written through another address).
#[derive(Debug)]
pub struct CodeMemory {
    file: OwnedFd,
    write: NonNull<u8>,
    exec: NonNull<u8>,
    len: usize,
    /// By chunk: its pages were asked for.
    ready: Vec<bool>,
}

/// Bytes whose pages are asked for together, at the first write there. Code is written from one end to the other, and
/// each of its pages would otherwise be two faults, of some hundred nanoseconds more than a page costs.
const CHUNK: usize = 64 << 10;

// SAFETY: two address ranges owned by the value; any thread may use or drop them.
unsafe impl Send for CodeMemory {}
// SAFETY: what takes `&self` only hands out the address.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    /// `len` bytes, a multiple of the page size, all zero.
    ///
    /// # Errors
    /// The kernel's: no memfd, no address space, or a policy that forbids executable mappings.
    pub fn new(len: usize) -> io::Result<Self> {
        let file = memfd_create("code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len as u64)?;
        let map = |prot| -> io::Result<NonNull<u8>> {
            // SAFETY: a new mapping at an address of the kernel's choice aliases nothing in use.
            let p = unsafe { mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0) }?;
            NonNull::new(p.cast()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let exec = map(ProtFlags::READ | ProtFlags::EXEC).inspect_err(|_| {
            // SAFETY: mapped above, and nobody knows of it.
            let _ = unsafe { mm::munmap(write.as_ptr().cast(), len) };
        })?;
        Ok(Self { file, write, exec, len, ready: vec![false; len.div_ceil(CHUNK)] })
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where execution finds byte 0.
    #[inline]
    pub fn base(&self) -> NonNull<u8> {
        self.exec
    }

    /// Writes code.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "code beyond its memory");
        for chunk in at / CHUNK..(at + bytes.len()).div_ceil(CHUNK) {
            if !std::mem::replace(&mut self.ready[chunk], true) {
                self.populate(chunk);
            }
        }
        // SAFETY: in bounds (checked above); only this method refers to the writable mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.write.as_ptr().add(at), bytes.len()) }
    }

    /// Writes much code that is hardly written to again: its pages are in neither mapping before they are needed there.
    ///
    /// # Errors
    /// The kernel's: no memory.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn fill(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len), "code beyond its memory");
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::pwrite(&self.file, &bytes[done..], (at + done) as u64)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                some => done += some,
            }
        }
        Ok(())
    }

    /// Asks for the pages of a chunk in both mappings. A kernel before 5.14 does not know how: then they come one by one.
    fn populate(&self, chunk: usize) {
        let (at, len) = (chunk * CHUNK, CHUNK.min(self.len - chunk * CHUNK));
        for (base, how) in
            [(self.write, mm::Advice::LinuxPopulateWrite), (self.exec, mm::Advice::LinuxPopulateRead)]
        {
            // SAFETY: a part of a mapping that this value owns; what is in it stays as it is.
            let _ = unsafe { mm::madvise(base.as_ptr().add(at).cast(), len, how) };
        }
    }

    /// Reads code back.
    ///
    /// # Panics
    /// When it is beyond the memory.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(at.checked_add(to.len()).is_some_and(|end| end <= self.len), "code beyond its memory");
        // SAFETY: in bounds (checked above), and `write` takes `&mut self`.
        unsafe { ptr::copy_nonoverlapping(self.write.as_ptr().add(at), to.as_mut_ptr(), to.len()) }
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for at in [self.write, self.exec] {
            // SAFETY: owned by the value, and nothing may use it after the drop.
            let _ = unsafe { mm::munmap(at.as_ptr().cast(), self.len) };
        }
    }
}
