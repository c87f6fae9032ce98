//! x87, MMX and SSE to SSE4.2: state, decoding into kernels, execution. Portable Rust throughout.
//!
//! The way of one instruction: [`decode`] (once per cached block) turns iced's form into a small
//! [`FpInsn`], [`execute`] fetches the source, runs the kernel and stores the result. A kernel is a
//! plain function over 128-bit values (`simd/`) or over the register stack (`x87/`); both count on
//! `soft/`, a floating point unit in integers, and use the host's own f32/f64 only where the result
//! is provably the same, flags included (`simd/arith.rs`).
//!
//! Invariants: no architectural state changes before the last possible fault; `Fpu::raised` is zero
//! between instructions; the x87 tag word is kept abridged (one bit a register) and widened on
//! demand, as FXSAVE defines it (SDM vol. 1, 10.5.1.1).

mod decode;
mod exec;
mod insn;
mod simd;
mod soft;
mod state;
mod x87;

pub use decode::decode;
pub use exec::{execute, execute_binary, execute_value};
pub use insn::{Class, FlagsUse, FpBus, FpContext, FpFault, FpInsn, Move, Shape, V};
pub use state::{BadMxcsr, F80, FXSAVE_LEN, Fpu};
