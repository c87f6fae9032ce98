//! A disk of no bytes: what a slot holds that nothing is attached to.

use std::io;

use crate::api::{Disk, check_range};

/// Has no bytes. Whoever looks sees a writable disk of size 0: a driver that is bound to it takes
/// what is attached later as a change of its size.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDisk;

impl Disk for NoDisk {
    fn size(&self) -> u64 {
        0
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        check_range(0, offset, to.len() as u64)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        check_range(0, offset, from.len() as u64)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(0, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(0, offset, len)
    }
}
