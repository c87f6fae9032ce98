//! The process's heap.

#![allow(unsafe_code)] // mallopt.

/// All threads share one heap from now on, instead of having one each (mallopt(3), `M_ARENA_MAX`).
///
/// The C library grows the heaps of other threads than the first by a page at a time, with a system call for
/// each; and what one thread gave back another could not use. Our threads allocate seldom and never together, so
/// nothing is lost by a common lock. To be called once, before there are threads.
pub fn share_one_heap() {
    // SAFETY: sets a tunable of the allocator; no memory is involved.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
