//! The kernel's random number generator (random(4)).
#![allow(unsafe_code)] // RNDADDENTROPY takes a raw structure

use rustix::fd::AsRawFd;
use rustix::fs::{Mode, OFlags};
use std::io;

/// `_IOW('R', 0x03, int[2])`: add bytes and credit them.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO('R', 0x07)`: make the generator take them in now.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// Bytes credited at most.
const LIMIT: usize = 64;

/// `struct rand_pool_info` with room for [`LIMIT`] bytes.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; LIMIT],
}

/// Mixes `seed` in and reseeds: nothing drawn by a call that begins later repeats what a copy of this machine draws.
///
/// # Errors
/// The kernel's.
pub fn reseed(seed: &[u8]) -> io::Result<()> {
    let device = rustix::fs::open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut pool = Pool { entropy_bits: 0, size: 0, bytes: [0; LIMIT] };
    for (place, byte) in pool.bytes.iter_mut().zip(seed) {
        *place = *byte;
        pool.size += 1;
        pool.entropy_bits += 8;
    }
    // SAFETY: the structure is laid out as the kernel's, with `size` valid bytes behind the two numbers; the second
    // command takes no argument.
    unsafe {
        if libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool) != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
