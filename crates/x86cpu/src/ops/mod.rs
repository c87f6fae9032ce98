//! What instructions do. One generic function per operation, instantiated per width and form.

pub(crate) mod alu;
pub(crate) mod atomic;
pub(crate) mod bcd;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod cond;
pub(crate) mod fp;
pub(crate) mod mov;
pub(crate) mod mul_div;
pub(crate) mod operand;
pub(crate) mod shifts;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
