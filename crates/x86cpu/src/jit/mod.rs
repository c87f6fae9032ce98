//! Translation of hot blocks to host code.
//!
//! Problem: the interpreter spends most of its time on getting from one instruction to the next, on
//! registers in memory, and on flags that nobody reads.
//!
//! Strategy: a block that has run often enough is decoded anew as a [`scan`] unit (over branches that are
//! not taken, along jumps in the page) and lowered, instruction by instruction, to host code ([`lower`]):
//! guest registers in host registers ([`regs`]), flags as descriptions ([`cc`]), memory by an inline TLB
//! look-up. What has no template calls the interpreter's handler. Translations jump to each other; they
//! come back to the dispatcher ([`run`]) when their budget is used up, when they do not know where to go,
//! and whenever something is out of the ordinary: then the guest is exactly *before* an instruction, and
//! the interpreter does that one. So no translation raises an exception or touches a device.
//!
//! Invariants:
//! - A translation writes guest memory (through TLB entries with a write tag), `Cpu`, and the stack below
//!   its entry; nothing else.
//! - It knows no virtual address (docs/adr/0132), and belongs to the page, privilege and code generation of
//!   its block; it looks into the tables of that privilege. The dispatcher drops it when the generation has moved, which it looks at before
//!   it enters any and so after every serialising instruction; what other vCPUs and devices write meanwhile is
//!   theirs to tell about. A store to a page that holds code misses the TLB and is done by the interpreter.
//! - A jump to another page holds while the map epoch does; a jump inside the page as long as both live.
//! - Every way out counts what was done: `insn_count` is exact wherever the dispatcher looks, and it looks
//!   every [`JIT_TICK`] instructions.
//!
//! Code memory is bounded; when it is full everything is dropped. It does not exist before the first
//! translation. On hosts that are not x86-64 there is none: `off` says so.

#![allow(unsafe_code)] // Entering generated code and coming back from it (`run`, `helpers`).

mod state;

#[cfg(target_arch = "x86_64")]
mod cc;
#[cfg(target_arch = "x86_64")]
mod emit;
#[cfg(target_arch = "x86_64")]
mod emit_x86_64;
#[cfg(all(test, target_arch = "x86_64"))]
mod golden;
#[cfg(target_arch = "x86_64")]
mod helpers;
#[cfg(target_arch = "x86_64")]
mod kept;
#[cfg(target_arch = "x86_64")]
mod link;
#[cfg(target_arch = "x86_64")]
mod lower;
#[cfg(target_arch = "x86_64")]
mod parts;
#[cfg(target_arch = "x86_64")]
mod plan;
#[cfg(target_arch = "x86_64")]
mod regs;
#[cfg(target_arch = "x86_64")]
mod run;
#[cfg(target_arch = "x86_64")]
mod scan;
#[cfg(target_arch = "x86_64")]
mod thunks;

#[cfg(not(target_arch = "x86_64"))]
mod off;
#[cfg(not(target_arch = "x86_64"))]
use off as run;

#[cfg(target_arch = "x86_64")]
pub use kept::{CodePlaces, KeptCode};
#[cfg(not(target_arch = "x86_64"))]
pub use off::{CodePlaces, KeptCode};
pub(crate) use run::Jit;
pub(crate) use state::{JitState, JumpEntry, Jumps, X87Image};

/// Instructions between two looks at events while translations run: at most 100 µs.
pub(crate) const JIT_TICK: u64 = 16_384;

/// How a vCPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Decoded blocks only.
    Interpreter,
    /// Blocks that have run `after` times are translated, `longest` instructions (1 to 255) at a time.
    Jit { after: u32, longest: u8 },
}

impl Default for Engine {
    fn default() -> Self {
        Engine::Jit { after: 48, longest: 64 }
    }
}

/// What translated code did, since the vCPU was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JitCounters {
    /// Instructions that retired in translations.
    pub instructions: u64,
    /// Times that translated code was entered from the dispatcher.
    pub entries: u64,
    /// Translations made.
    pub translations: u64,
    /// Translations that were made before the machine was frozen, and gone on with.
    pub kept: u64,
    /// Instructions that went back to the interpreter one by one.
    pub steps: u64,
    /// Bytes of host code made.
    pub code_bytes: u64,
    /// Times that the code memory was full.
    pub flushes: u64,
    /// Calls of the interpreter's handlers from translations.
    pub handlers: u64,
    /// Look-ups of addresses in translations that missed the TLB.
    pub misses: u64,
    /// Indirect branches whose target was not in the jump cache.
    pub searches: u64,
    /// Exits of translations that led nowhere, or whose link did not hold any more.
    pub unlinked: u64,
}

/// What is next after translations have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Go on at `Cpu::rip`.
    Next,
    /// Go on at `Cpu::rip`, with one instruction in the interpreter.
    Single,
    /// Go on at `Cpu::rip`, with a block in the interpreter.
    Block,
}

/// RORX.
#[cfg(target_arch = "x86_64")]
fn host_has_bmi2() -> bool {
    std::is_x86_feature_detected!("bmi2")
}

#[cfg(target_arch = "x86_64")]
fn host_has_popcnt() -> bool {
    std::is_x86_feature_detected!("popcnt")
}

/// SSE3, SSSE3 and SSE4.1 come with it.
#[cfg(target_arch = "x86_64")]
fn host_has_sse42() -> bool {
    std::is_x86_feature_detected!("sse4.2") && std::is_x86_feature_detected!("ssse3")
}
