//! Loads, stores, and the pages below them.

use std::hint::black_box;
use std::thread;

use super::Random;
use crate::sys;

const MIB: usize = 1 << 20;

/// Follows a random cycle through 4 MB.
pub fn chase(steps: u64) -> u64 {
    const CELLS: usize = 4 * MIB / 8;
    // Sattolo's shuffle: one cycle through all cells.
    let mut next: Vec<u64> = (0..CELLS as u64).collect();
    let mut random = Random::new(42);
    for i in (1..CELLS).rev() {
        next.swap(i, (random.next() % i as u64) as usize);
    }
    let next = black_box(next);
    (0..steps).fold(0, |at, _| next[at as usize])
}

/// `times` sieves of 8 million bytes; gives the count of primes.
pub fn sieve(times: u64) -> u64 {
    const N: usize = 8_000_000;
    let mut count = 0;
    let mut composite = vec![0u8; N];
    for _ in 0..times {
        composite.fill(0);
        count = 0;
        for i in 2..N {
            if composite[i] == 0 {
                count += 1;
                let mut multiple = i * i;
                while multiple < N {
                    composite[multiple] = 1;
                    multiple += i;
                }
            }
        }
        black_box(&mut composite);
    }
    count
}

/// The same on two threads, half of the sieves on each.
pub fn sieve_twice(times: u64) -> u64 {
    let half = times.div_ceil(2);
    let other = thread::spawn(move || sieve(half));
    sieve(half).wrapping_add(other.join().unwrap_or(0))
}

/// memset in runs of 16 MB.
pub fn set(bytes: u64) -> u64 {
    let mut buffer = vec![1u8; 16 * MIB];
    for round in 0..bytes.div_ceil(buffer.len() as u64) {
        buffer.fill(round as u8);
        black_box(&mut buffer);
    }
    buffer[buffer.len() / 2].into()
}

/// memcpy in runs of 16 MB.
pub fn copy(bytes: u64) -> u64 {
    let from = vec![7u8; 16 * MIB];
    let mut to = vec![1u8; 16 * MIB];
    for _ in 0..bytes.div_ceil(to.len() as u64) {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    }
    to[to.len() / 2].into()
}

/// Touches fresh pages of anonymous memory, 64 MB at a time.
pub fn faults(pages: u64) -> u64 {
    let run = (64 * MIB / 4096) as u64;
    let mut touched = 0;
    while touched < pages {
        let now = run.min(pages - touched);
        touched += sys::touch_fresh_pages(now as usize) as u64;
    }
    touched
}
