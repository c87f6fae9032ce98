//! Calls: through a table of functions at random, and deep recursion.

use std::hint::black_box;

use super::Random;

macro_rules! targets {
    ($($name:ident $constant:literal),*) => {
        $(#[inline(never)]
        fn $name(x: u64) -> u64 {
            black_box(x).rotate_left($constant) ^ $constant
        })*
        static TARGETS: &[fn(u64) -> u64] = &[$($name),*];
    };
}

targets!(f0 1, f1 2, f2 3, f3 5, f4 7, f5 11, f6 13, f7 17, f8 19, f9 23, fa 29, fb 31, fc 37, fd 41, fe 43, ff 47);

/// Calls one of 16 functions at random.
pub fn indirect(times: u64) -> u64 {
    let mut random = Random::new(black_box(12345));
    let targets = black_box(TARGETS);
    let mut value = 1u64;
    for _ in 0..times {
        value = targets[(random.next() >> 60) as usize](value);
    }
    value
}

/// Fibonacci's recursion to the depth of 20: 22,000 calls and returns each time.
pub fn recursion(times: u64) -> u64 {
    #[inline(never)]
    fn fibonacci(n: u64) -> u64 {
        if black_box(n) < 2 { n } else { fibonacci(n - 1).wrapping_add(fibonacci(n - 2)) }
    }
    (0..times).map(|_| fibonacci(20)).sum()
}
