//! Random bytes of the host's kernel.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `to` with bytes fit for keys.
///
/// # Errors
/// The kernel's (none since it is seeded).
pub fn fill_random(mut to: &mut [u8]) -> io::Result<()> {
    while !to.is_empty() {
        match getrandom(&mut *to, GetRandomFlags::empty()) {
            Ok(n) => to = &mut to[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
