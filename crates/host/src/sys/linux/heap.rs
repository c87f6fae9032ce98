//! The process's heap.

#![allow(unsafe_code)] // mallopt, malloc_trim.

/// All threads share one heap from now on, instead of having one each (mallopt(3), `M_ARENA_MAX`).
///
/// The C library grows the heaps of other threads than the first by a page at a time, with a system call for
/// each; and what one thread gave back another could not use. Our threads allocate seldom and never together, so
/// nothing is lost by a common lock. To be called once, before there are threads.
pub fn share_one_heap() {
    // SAFETY: sets a tunable of the allocator; no memory is involved.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives the pages of the heap that nothing uses back to the host (malloc_trim(3)), which the C library does by itself
/// only at the heap's end. It looks at the whole heap: to be called after something large, not often.
pub fn give_back_heap() {
    // SAFETY: touches nothing but the allocator's free memory, under its own locks.
    unsafe { libc::malloc_trim(0) };
}
