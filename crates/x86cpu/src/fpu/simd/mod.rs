//! Kernels of MMX and SSE to SSE4.2, by kind.

pub(super) mod arith;
pub(super) mod convert;
pub(super) mod integer;
mod lanes;
pub(super) mod moves;
pub(super) mod shuffle;
pub(super) mod strings;
