//! The soft x86-64 system CPU: executes guest instructions on any host, without its help.
//!
//! Problem: many hosts have no usable KVM. A whole Linux must run there, exactly, at a usable speed.
//!
//! Strategy (engine stage S0): `decode` turns bytes into [`op::Op`]s, each with a handler that is
//! specialised by operation, operand size and operand form; `block` caches runs of them by
//! guest-*physical* address and mode; `interp` runs blocks and chains them; `flags` keeps
//! arithmetic flags as the operands of their formula until somebody asks. `mmu` is the only place
//! that touches guest bytes; `sys`, `lapic` and `clock` are the privileged half; `fpu` is x87, MMX
//! and SSE. vCPUs may execute at once, each on a thread: `peers` is what they know of each other.
//!
//! Invariants: an instruction changes nothing before its last possible fault; a block runs only
//! while the code generation of its pages is the one it was decoded from; nothing outside of `mmu`
//! uses `unsafe`.
//!
//! Next: `hv_soft/vcpu.rs` drives [`Cpu::run`] and turns [`Stop`]s into `hv::Exit`s.

// What only translations use is compiled for every host; which hosts those are is for `jit` to say.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]

mod block;
mod cpu;
mod decode;
mod flags;
mod hot;
mod interp;
mod io_log;
mod jit;
mod learnt;
mod op;
mod ops;

pub mod clock;
pub mod fpu;
pub mod lapic;
mod mmu;
mod peers;
mod state;
mod step;
mod sys;

pub use cpu::{Cpu, CpuConfig, CpuCounters, PollFlag, Stop};
pub use hot::{Foresight, HotSet};
pub use jit::{CodePlaces, Engine, JitCounters, KeptCode};
pub use learnt::Learnt;
pub use mmu::MmuCounters;
pub use state::BadState;
pub use step::{StepOutcome, Stepper};
