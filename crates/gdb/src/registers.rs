//! The neutral vCPU state as gdb numbers registers, and back.

use arch::x86_64::regs::{gpr, seg};
use arch::x86_64::state::VcpuState;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

/// gdb's order: rax rbx rcx rdx rsi rdi rbp rsp r8 to r15.
const ORDER: [usize; 16] = [
    gpr::RAX,
    gpr::RBX,
    gpr::RCX,
    gpr::RDX,
    gpr::RSI,
    gpr::RDI,
    gpr::RBP,
    gpr::RSP,
    8,
    9,
    10,
    11,
    12,
    13,
    14,
    15,
];

/// Offsets in an FXSAVE image (SDM vol. 1, 10.5.1): FCW, FSW, FTW, MXCSR, ST0, XMM0; the latter two every 16 bytes.
const FCW: usize = 0;
const FSW: usize = 2;
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

/// Bytes of the image; zeros where a state has none.
fn field<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    image.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn set(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = image.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// For reading.
pub(crate) fn to_gdb(state: &VcpuState, regs: &mut X86_64CoreRegs) {
    regs.regs = ORDER.map(|register| state.gpr[register]);
    regs.rip = state.rip;
    regs.eflags = state.rflags as u32;
    let selector = |index: usize| u32::from(state.seg[index].selector);
    regs.segments.cs = selector(seg::CS);
    regs.segments.ss = selector(seg::SS);
    regs.segments.ds = selector(seg::DS);
    regs.segments.es = selector(seg::ES);
    regs.segments.fs = selector(seg::FS);
    regs.segments.gs = selector(seg::GS);
    let image = &state.fxsave;
    regs.st = std::array::from_fn(|i| field(image, ST + 16 * i));
    regs.fpu.fctrl = u16::from_le_bytes(field(image, FCW)).into();
    regs.fpu.fstat = u16::from_le_bytes(field(image, FSW)).into();
    regs.xmm = std::array::from_fn(|i| u128::from_le_bytes(field(image, XMM + 16 * i)));
    regs.mxcsr = u32::from_le_bytes(field(image, MXCSR));
}

/// For writing; segment registers and the FPU's own stay: their hidden parts are no registers of gdb's.
pub(crate) fn from_gdb(regs: &X86_64CoreRegs, state: &mut VcpuState) {
    for (value, register) in regs.regs.iter().zip(ORDER) {
        state.gpr[register] = *value;
    }
    state.rip = regs.rip;
    state.rflags = state.rflags & !0xffff_ffff | u64::from(regs.eflags);
    for (i, st) in regs.st.iter().enumerate() {
        set(&mut state.fxsave, ST + 16 * i, st);
    }
    for (i, xmm) in regs.xmm.iter().enumerate() {
        set(&mut state.fxsave, XMM + 16 * i, &xmm.to_le_bytes());
    }
    set(&mut state.fxsave, MXCSR, &regs.mxcsr.to_le_bytes());
}
