//! Where guest registers live while translated code runs, and what the state pointer reaches.
//!
//! RBP points at `Cpu::gpr[0]`. Twelve guest registers are in host registers, ten of them in the one of
//! the same name (so that shifts by CL, MUL, DIV, CMPXCHG and the like need no moves); R9, R10, R11 and
//! R15, which compiled code uses least, stay in memory. R10 and R11 are scratch. All guest XMM
//! registers are in the host's of the same number while `JitState::live` is set.

use std::mem::offset_of;

use super::emit::{Mem, Rm};
use super::state::JitState;
use crate::cpu::Cpu;
use crate::mmu::StackPage;

/// The state pointer.
pub(super) const STATE: u8 = 5;
/// Scratch registers.
pub(super) const T0: u8 = 10;
pub(super) const T1: u8 = 11;

pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;

/// Host register of the guest's stack pointer.
pub(super) const SP: u8 = 15;

/// Host register of a guest register, or 0xff.
const PINNED: [u8; 16] = [0, 1, 2, 3, SP, 9, 6, 7, 8, 0xff, 0xff, 0xff, 12, 13, 14, 0xff];

/// Guest and host register of those that live in host registers.
pub(super) const PAIRS: [(u8, u8); 12] =
    [(0, 0), (1, 1), (2, 2), (3, 3), (4, SP), (5, 9), (6, 6), (7, 7), (8, 8), (12, 12), (13, 13), (14, 14)];

/// Of those, the ones that a call of Rust code destroys.
pub(super) const CALLER_SAVED: [(u8, u8); 7] = [(0, 0), (1, 1), (2, 2), (5, 9), (6, 6), (7, 7), (8, 8)];

/// Host register of guest register `g` when it has one.
pub(super) fn pinned(g: u8) -> Option<u8> {
    let host = PINNED[usize::from(g & 15)];
    (host != 0xff).then_some(host)
}

/// Memory of guest register `g`.
pub(super) fn home(g: u8) -> Rm {
    field(8 * i32::from(g))
}

/// Something at a distance from the state pointer.
pub(super) fn field(disp: i32) -> Rm {
    Rm::Mem(Mem::at(STATE, disp))
}

/// Distance of a field of [`Cpu`] from the state pointer.
const fn from_state(offset: usize) -> i32 {
    offset as i32 - offset_of!(Cpu, gpr) as i32
}

/// Distance of a field of [`JitState`] from the state pointer.
const fn jx(offset: usize) -> i32 {
    from_state(offset_of!(Cpu, jx) + offset)
}

pub(super) const BUDGET: i32 = jx(offset_of!(JitState, budget));
pub(super) const CC_A: i32 = jx(offset_of!(JitState, a));
pub(super) const CC_B: i32 = jx(offset_of!(JitState, b));
pub(super) const CC_C: i32 = jx(offset_of!(JitState, c));
pub(super) const CC_R: i32 = jx(offset_of!(JitState, r));
pub(super) const CC_OP: i32 = jx(offset_of!(JitState, op));
pub(super) const CC_OVER: i32 = jx(offset_of!(JitState, over));
pub(super) const LIVE: i32 = jx(offset_of!(JitState, live));
pub(super) const SSE_OK: i32 = jx(offset_of!(JitState, sse_ok));
pub(super) const HOST_MXCSR: i32 = jx(offset_of!(JitState, host_mxcsr));
pub(super) const TMP: i32 = jx(offset_of!(JitState, tmp));
pub(super) const TMP2: i32 = jx(offset_of!(JitState, tmp2));
pub(super) const LIN: i32 = jx(offset_of!(JitState, lin));
pub(super) const TLB: i32 = jx(offset_of!(JitState, tlb));
pub(super) const JUMPS: i32 = jx(offset_of!(JitState, jumps));
pub(super) const SITE: i32 = jx(offset_of!(JitState, site));
pub(super) const TARGET: i32 = jx(offset_of!(JitState, target));
pub(super) const PAGE: i32 = jx(offset_of!(JitState, page));
pub(super) const X87: i32 = jx(offset_of!(JitState, x87));
pub(super) const X87_OK: i32 = jx(offset_of!(JitState, x87_ok));
pub(super) const X87_IMAGE: i32 = from_state(offset_of!(Cpu, x87_image));
pub(super) const RIP: i32 = from_state(offset_of!(Cpu, rip));
pub(super) const XMM: i32 = from_state(offset_of!(Cpu, fpu) + offset_of!(crate::fpu::Fpu, xmm));
pub(super) const MXCSR: i32 = from_state(offset_of!(Cpu, fpu) + offset_of!(crate::fpu::Fpu, mxcsr));

/// Distance of a segment's base.
pub(super) const fn segment_base(segment: u8) -> i32 {
    use arch::x86_64::state::Segment;
    from_state(offset_of!(Cpu, seg))
        + segment as i32 * size_of::<Segment>() as i32
        + offset_of!(Segment, base) as i32
}

pub(super) const MISSED_TARGET: i32 =
    from_state(offset_of!(Cpu, jump_miss) + offset_of!(super::state::JumpEntry, rip));
pub(super) const CPL: i32 = from_state(offset_of!(Cpu, cpl));
/// RFLAGS without the arithmetic flags.
pub(super) const SYSTEM_FLAGS: i32 =
    from_state(offset_of!(Cpu, flags) + offset_of!(crate::flags::Flags, system));
pub(super) const KERNEL_GS: i32 =
    from_state(offset_of!(Cpu, msrs) + offset_of!(arch::x86_64::state::Msrs, kernel_gs_base));

/// Distances of what is remembered of the stack's page.
#[derive(Clone, Copy)]
pub(super) struct StackFields {
    pub base: i32,
    pub host: i32,
    /// The first of them.
    limits: i32,
    pub info: i32,
}

impl StackFields {
    /// The limit for accesses of at most so many bytes.
    pub fn limit(&self, bytes: u32) -> i32 {
        self.limits + 8 * (bytes.max(8).next_power_of_two().trailing_zeros() as i32 - 3)
    }
}

/// Those of one privilege (0: user).
pub(super) const fn stack_fields(bank: usize) -> StackFields {
    let at = offset_of!(Cpu, mmu) + crate::mmu::STACK_PAGES + bank * size_of::<StackPage>();
    StackFields {
        base: from_state(at + offset_of!(StackPage, base)),
        host: from_state(at + offset_of!(StackPage, host)),
        limits: from_state(at + offset_of!(StackPage, limits)),
        info: from_state(at + offset_of!(StackPage, info)),
    }
}

/// Where `Cpu` begins, from the state pointer.
pub(super) const CPU: i32 = from_state(0);
