//! The soft CPU against the host's own: instructions with random operands on random states, executed
//! natively in this process and by x86cpu, compared bit by bit.
//!
//! `catalogue` lists what is generated. `generate` makes a [`case::Case`] of one form, `sequence` one
//! of several instructions. `native`, `soft` (the FPU alone) and `machine` (the whole CPU) run it.
//! `compare` leaves out what the manual leaves undefined and says what differs; `run` counts.
//!
//! A host that is not x86-64 Linux has no oracle: [`native::Native::new`] says so, and callers skip
//! aloud. Where AMD's and Intel's x87 differ, the soft FPU follows AMD's (most test machines), and an
//! Intel host is not asked (`compare::by_vendor`).

pub mod case;
pub mod catalogue;
pub mod compare;
pub mod generate;
pub mod machine;
pub mod native;
pub mod rng;
pub mod run;
pub mod sequence;
pub mod soft;
