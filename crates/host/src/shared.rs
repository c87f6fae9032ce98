//! Single accesses to memory that others change at the same time: guest RAM.
//!
//! Problem: guest programs race on their memory as the architecture allows. Rust's plain accesses may be torn,
//! merged or repeated by the compiler, and its atomics know neither odd addresses nor sixteen bytes.
//!
//! Strategy: on an x86-64 host each access is the one host instruction that the guest's would be, so the host's
//! own memory order (SDM vol. 3, 9.2) is the guest's, also for locked accesses that are not aligned. Other hosts
//! have a weaker order: there an access is whole when it is aligned, and whoever needs x86's order must let vCPUs
//! take turns ([`IS_X86_ORDERED`]).
//!
//! Invariant: the compiler neither drops, merges nor moves these accesses relative to each other.
#![allow(unsafe_code)] // Raw accesses are what this module is.

/// Whether plain accesses of this host keep x86's order, and locked ones are atomic at any address.
pub const IS_X86_ORDERED: bool = cfg!(target_arch = "x86_64");

/// A word of shared memory.
pub trait Shared: Copy + Eq {
    /// One load; [`u128`] is two of 8 bytes.
    ///
    /// # Safety
    /// `at` is valid for reads of the word, at any alignment.
    unsafe fn load(at: *const Self) -> Self;

    /// One store; [`u128`] is two of 8 bytes.
    ///
    /// # Safety
    /// `at` is valid for writes of the word, at any alignment.
    unsafe fn store(at: *mut Self, value: Self);

    /// Puts `new` there if it holds `old`, and gives what it held: one locked access, a full barrier.
    ///
    /// # Safety
    /// `at` is valid for reads and writes of the word; at any alignment, [`u128`] at a multiple of 16.
    unsafe fn compare_exchange(at: *mut Self, old: Self, new: Self) -> Self;
}

#[cfg(target_arch = "x86_64")]
mod words {
    use std::arch::asm;

    use super::Shared;

    macro_rules! word {
        ($t:ty, $load:literal, $store:literal, $cmpxchg:literal, $class:ident, $acc:tt, $wide:ty) => {
            impl Shared for $t {
                #[inline(always)]
                unsafe fn load(at: *const Self) -> Self {
                    let value: $wide;
                    // SAFETY: a load of the word, which the caller vouches for.
                    unsafe {
                        asm!($load, at = in(reg) at, v = out(reg) value,
                            options(nostack, preserves_flags, readonly));
                    }
                    value as $t
                }

                #[inline(always)]
                unsafe fn store(at: *mut Self, value: Self) {
                    // SAFETY: a store of the word, which the caller vouches for.
                    unsafe {
                        asm!($store, at = in(reg) at, v = in($class) value, options(nostack, preserves_flags));
                    }
                }

                #[inline(always)]
                unsafe fn compare_exchange(at: *mut Self, old: Self, new: Self) -> Self {
                    let found: Self;
                    // SAFETY: an access to the word, which the caller vouches for.
                    unsafe {
                        asm!($cmpxchg, at = in(reg) at, new = in($class) new,
                            inout($acc) old => found, options(nostack));
                    }
                    found
                }
            }
        };
    }
    word!(
        u8,
        "movzx {v:e}, byte ptr [{at}]",
        "mov byte ptr [{at}], {v}",
        "lock cmpxchg byte ptr [{at}], {new}",
        reg_byte,
        "al",
        u32
    );
    word!(
        u16,
        "movzx {v:e}, word ptr [{at}]",
        "mov word ptr [{at}], {v:x}",
        "lock cmpxchg word ptr [{at}], {new:x}",
        reg,
        "ax",
        u32
    );
    word!(
        u32,
        "mov {v:e}, dword ptr [{at}]",
        "mov dword ptr [{at}], {v:e}",
        "lock cmpxchg dword ptr [{at}], {new:e}",
        reg,
        "eax",
        u32
    );
    word!(
        u64,
        "mov {v}, qword ptr [{at}]",
        "mov qword ptr [{at}], {v}",
        "lock cmpxchg qword ptr [{at}], {new}",
        reg,
        "rax",
        u64
    );

    impl Shared for u128 {
        #[inline(always)]
        unsafe fn load(at: *const Self) -> Self {
            // SAFETY: the two halves of a word that the caller vouches for.
            unsafe {
                let low = u64::load(at.cast());
                u128::from(low) | u128::from(u64::load(at.cast::<u64>().wrapping_add(1))) << 64
            }
        }

        #[inline(always)]
        unsafe fn store(at: *mut Self, value: Self) {
            // SAFETY: the two halves of a word that the caller vouches for.
            unsafe {
                u64::store(at.cast(), value as u64);
                u64::store(at.cast::<u64>().wrapping_add(1), (value >> 64) as u64);
            }
        }

        unsafe fn compare_exchange(at: *mut Self, old: Self, new: Self) -> Self {
            let (low, high): (u64, u64);
            // SAFETY: an access to the word, which the caller vouches for. RBX, which the compiler keeps to
            // itself, is put back.
            unsafe {
                asm!(
                    "xchg {b}, rbx",
                    "lock cmpxchg16b xmmword ptr [{at}]",
                    "mov rbx, {b}",
                    at = in(reg) at,
                    b = inout(reg) new as u64 => _,
                    in("rcx") (new >> 64) as u64,
                    inout("rax") old as u64 => low,
                    inout("rdx") (old >> 64) as u64 => high,
                    options(nostack)
                );
            }
            u128::from(low) | u128::from(high) << 64
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod words {
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::*};

    use super::Shared;

    macro_rules! word {
        ($t:ty, $atomic:ty) => {
            impl Shared for $t {
                #[inline(always)]
                unsafe fn load(at: *const Self) -> Self {
                    // SAFETY: the caller's promise, and alignment where it is asked for.
                    unsafe {
                        if at.is_aligned() {
                            <$atomic>::from_ptr(at.cast_mut()).load(Acquire)
                        } else {
                            at.read_unaligned()
                        }
                    }
                }

                #[inline(always)]
                unsafe fn store(at: *mut Self, value: Self) {
                    // SAFETY: as in `load`.
                    unsafe {
                        if at.is_aligned() {
                            <$atomic>::from_ptr(at).store(value, Release);
                        } else {
                            at.write_unaligned(value);
                        }
                    }
                }

                #[inline(always)]
                unsafe fn compare_exchange(at: *mut Self, old: Self, new: Self) -> Self {
                    // SAFETY: as in `load`.
                    unsafe {
                        if at.is_aligned() {
                            let cell = <$atomic>::from_ptr(at);
                            return cell
                                .compare_exchange(old, new, SeqCst, SeqCst)
                                .unwrap_or_else(|found| found);
                        }
                        let found = at.read_unaligned();
                        if found == old {
                            at.write_unaligned(new);
                        }
                        found
                    }
                }
            }
        };
    }
    word!(u8, AtomicU8);
    word!(u16, AtomicU16);
    word!(u32, AtomicU32);
    word!(u64, AtomicU64);

    impl Shared for u128 {
        unsafe fn load(at: *const Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { at.read_unaligned() }
        }

        unsafe fn store(at: *mut Self, value: Self) {
            // SAFETY: the caller's promise.
            unsafe { at.write_unaligned(value) }
        }

        unsafe fn compare_exchange(at: *mut Self, old: Self, new: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe {
                let found = at.read_unaligned();
                if found == old {
                    at.write_unaligned(new);
                }
                found
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four threads add to one word; `at` bytes into a buffer that is aligned to 64.
    fn count<T: Shared + Send>(at: usize, one: impl Fn(T) -> T + Sync, zero: T) -> T {
        #[repr(align(64))]
        struct Buffer([u8; 128]);
        let mut buffer = Buffer([0; 128]);
        let place = buffer.0.as_mut_ptr().expose_provenance() + at;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let word = std::ptr::with_exposed_provenance_mut::<T>(place);
                    for _ in 0..20_000 {
                        // SAFETY: inside the buffer, which outlives the scope.
                        let mut old = unsafe { T::load(word) };
                        loop {
                            // SAFETY: as above.
                            let found = unsafe { T::compare_exchange(word, old, one(old)) };
                            if found == old {
                                break;
                            }
                            old = found;
                        }
                    }
                });
            }
        });
        let word = std::ptr::with_exposed_provenance_mut::<T>(place);
        // SAFETY: as above.
        unsafe {
            let sum = T::load(word);
            T::store(word, zero);
            assert!(T::load(word) == zero);
            sum
        }
    }

    #[test]
    fn no_addition_is_lost_at_any_address() {
        if !IS_X86_ORDERED {
            return;
        }
        assert_eq!(count::<u8>(7, |v| v.wrapping_add(1), 9), (80_000 % 256) as u8);
        assert_eq!(count::<u16>(63, |v| v.wrapping_add(1), 9), (80_000 % 65_536) as u16);
        for at in [0, 5, 62] {
            assert_eq!(count::<u32>(at, |v| v + 1, 9), 80_000);
            assert_eq!(count::<u64>(at, |v| v + 0x1_0000_0001, 9), 80_000 * 0x1_0000_0001);
        }
        let step = 1u128 << 100 | 1;
        assert_eq!(count::<u128>(16, |v| v + step, 9), 80_000 * step);
    }
}
