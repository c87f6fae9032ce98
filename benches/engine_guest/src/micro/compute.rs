//! Registers and flags: integers, branches, SSE and x87 arithmetic.
#![allow(unsafe_code)] // x87 has no other way in than its instructions

use std::arch::asm;
use std::hint::black_box;
use std::thread;

use super::Random;

/// Shifts, exclusive ors, a multiplication and an addition each time round.
pub fn integers(times: u64) -> u64 {
    let mut random = Random::new(black_box(88_172_645_463_325_252));
    (0..times).fold(0, |sum: u64, i| sum.wrapping_add(random.next() ^ i))
}

/// The same on two threads, half of the work on each.
pub fn integers_twice(times: u64) -> u64 {
    let other = thread::spawn(move || integers(times / 2));
    integers(times / 2).wrapping_add(other.join().unwrap_or(0))
}

/// Four branches on unpredictable bits each time round, with different work behind them.
pub fn branches(times: u64) -> u64 {
    let mut random = Random::new(black_box(0x9e37_79b9_7f4a_7c15));
    let (mut a, mut b) = (1u64, 2u64);
    for _ in 0..times {
        let bits = random.next();
        if black_box(bits & 1) != 0 {
            a = a.wrapping_add(b);
        } else {
            b ^= a;
        }
        if black_box(bits & 2) != 0 {
            a = a.rotate_left(5);
        }
        if black_box(bits & 12) == 4 {
            b = b.wrapping_sub(a);
        } else if a > b {
            a ^= bits;
        }
    }
    a ^ b
}

/// `times` products of 320 x 320 doubles by the schoolbook.
pub fn matrix(times: u64) -> u64 {
    const N: usize = 320;
    let mut random = Random::new(3);
    let mut fill = || -> Vec<f64> { (0..N * N).map(|_| (random.next() >> 40) as f64 / 65536.0).collect() };
    let (left, right) = (fill(), fill());
    let mut sum = 0.0;
    for _ in 0..times {
        let (left, right) = (black_box(&left), black_box(&right));
        let mut product = vec![0.0; N * N];
        for (row, out) in left.chunks_exact(N).zip(product.chunks_exact_mut(N)) {
            for (column, to) in out.iter_mut().enumerate() {
                *to = row.iter().zip(right[column..].iter().step_by(N)).map(|(x, y)| x * y).sum();
            }
        }
        sum += product.iter().sum::<f64>();
    }
    sum.to_bits()
}

/// Ten x87 operations each time round: load, multiply, add, divide, square root, exchange, store.
pub fn x87(times: u64) -> u64 {
    let (mut x, y, z) = (black_box(1.5f64), black_box(1.000_001f64), black_box(0.25f64));
    for _ in 0..times {
        // SAFETY: the operands are doubles on this frame; the stack is empty before and after.
        unsafe {
            asm!(
                "fld qword ptr [{x}]", "fmul qword ptr [{y}]", "fadd qword ptr [{z}]",
                "fld st(0)", "fsqrt", "fxch", "fdiv qword ptr [{y}]",
                "faddp", "fmul qword ptr [{z}]", "fstp qword ptr [{x}]",
                x = in(reg) &raw mut x, y = in(reg) &raw const y, z = in(reg) &raw const z,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack)
            );
        }
    }
    x.to_bits()
}
