//! The soft CPU against the host's own: single instructions with random operands on random states,
//! executed natively in this process and by x86cpu, compared bit by bit.
//!
//! `catalogue` lists what is generated, `generate` makes a [`case::Case`] of a
//! code (`sequence` of several), `native`,
//! `soft` (the FPU alone) and `machine` (the whole CPU) run it, `compare` masks what the manual leaves undefined and says what differs. A host
//! that is not x86-64 Linux has no oracle: [`native::Native::new`] says so and callers skip aloud.

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
