//! Memory that is about to be written, asked for as a whole.

#![allow(unsafe_code)] // madvise.

use rustix::mm;

const PAGE: usize = 4096;

/// Makes a vector's free room resident: who fills it at once pays for one call instead of a fault for each page. A
/// kernel before 5.14 does not know how; then the pages come one by one.
pub fn expect_filling<T>(vector: &mut Vec<T>) {
    let room = vector.spare_capacity_mut();
    let first = room.as_mut_ptr().addr().next_multiple_of(PAGE);
    let end = (room.as_mut_ptr().addr() + size_of_val(room)) & !(PAGE - 1);
    if end > first {
        let at = room.as_mut_ptr().with_addr(first);
        // SAFETY: whole pages of memory that is lent to this function; what is in them stays as it is.
        let _ = unsafe { mm::madvise(at.cast(), end - first, mm::Advice::LinuxPopulateWrite) };
    }
}
