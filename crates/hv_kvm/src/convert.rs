//! Between KVM's structures and the neutral state: pure functions (KVM:
//! Documentation/virt/kvm/api.rst; SDM vol. 1, 10.5.1 and 13.4 for the FXSAVE and XSAVE areas).

use arch::x86_64::regs::gpr;
use arch::x86_64::state::{Events, MpState, Segment, TableReg, VcpuState};
use hv::Error;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MP_STATE_AP_RESET_HOLD, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xsave,
};

use crate::abi::ENGINE;

/// Bytes of an FXSAVE image.
pub(crate) const FXSAVE_LEN: usize = 512;
/// Where software-defined bytes begin in it: not the processor's, zero in the neutral state.
const FXSAVE_SOFTWARE: usize = 416;
const MXCSR_MASK_AT: usize = 28;
/// x87 and SSE in XSTATE_BV.
const XSTATE_X87_SSE: u32 = 3;

const ACCESSED: u32 = 1;
const SYSTEM_BIT: u32 = 1 << 4;
const PRESENT: u32 = 1 << 7;
const GRANULAR: u32 = 1 << 15;
const UNUSABLE: u32 = 1 << 16;
const BUSY_TSS: u32 = 0xb;

pub(crate) fn cpuid(leaves: &[hv::CpuidLeaf]) -> Result<CpuId, Error> {
    let entries: Vec<_> = leaves
        .iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.leaf,
            index: leaf.subleaf.unwrap_or(0),
            flags: if leaf.subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|_| Error::Unsupported {
        engine: ENGINE,
        what: format!("{} CPUID leaves", entries.len()),
        advice: "the file asks for a CPU that KVM has no room for",
    })
}

pub(crate) fn segment_from(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let attr = u32::from(s.type_ & 15)
        | bit(s.s, 4)
        | u32::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15)
        | bit(s.unusable, 16);
    Segment { selector: s.selector, base: s.base, limit: s.limit, attr }
}

/// A segment that a VM entry accepts (SDM vol. 3, 27.3.1.2): the granularity bit must fit the limit,
/// and code and data in use have been accessed.
pub(crate) fn segment_to(s: &Segment) -> kvm_segment {
    let usable = s.attr & UNUSABLE == 0;
    let bit = |at: u32| ((s.attr >> at) & 1) as u8;
    let mut attr = s.attr;
    if usable && attr & SYSTEM_BIT != 0 {
        attr |= ACCESSED;
    }
    let fits_pages = s.limit & 0xfff == 0xfff;
    let granular = s.limit >> 20 != 0 || (attr & GRANULAR != 0 && fits_pages);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (attr & 15) as u8,
        present: bit(7),
        dpl: ((attr >> 5) & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: u8::from(granular),
        avl: bit(12),
        unusable: u8::from(!usable),
        padding: 0,
    }
}

/// The task register is never unusable on a processor with virtualisation: one that was not loaded
/// yet is the reset value, a busy TSS.
fn task_register(s: &Segment) -> Segment {
    let attr = (s.attr & !(UNUSABLE | SYSTEM_BIT | 15)) | BUSY_TSS | PRESENT;
    if s.attr & UNUSABLE != 0 { Segment { limit: 0xffff, attr, ..*s } } else { Segment { attr, ..*s } }
}

fn table_from(t: &kvm_dtable) -> TableReg {
    TableReg { base: t.base, limit: t.limit }
}

fn table_to(t: &TableReg) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..Default::default() }
}

pub(crate) fn sregs_from(s: &kvm_sregs, state: &mut VcpuState) {
    state.seg = [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment_from);
    (state.tr, state.ldtr) = (segment_from(&s.tr), segment_from(&s.ldt));
    (state.gdtr, state.idtr) = (table_from(&s.gdt), table_from(&s.idt));
    (state.cr0, state.cr2, state.cr3, state.cr4, state.cr8) = (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8);
    state.msrs.efer = s.efer;
    state.msrs.apic_base = s.apic_base;
}

/// Pending interrupts go through the events, not through the bitmap here.
pub(crate) fn sregs_to(state: &VcpuState) -> kvm_sregs {
    let [es, cs, ss, ds, fs, gs] = state.seg.each_ref().map(segment_to);
    kvm_sregs {
        es,
        cs,
        ss,
        ds,
        fs,
        gs,
        tr: segment_to(&task_register(&state.tr)),
        ldt: segment_to(&state.ldtr),
        gdt: table_to(&state.gdtr),
        idt: table_to(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.msrs.efer,
        apic_base: state.msrs.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

pub(crate) fn regs_from(r: &kvm_regs, state: &mut VcpuState) {
    state.gpr = [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ];
    (state.rip, state.rflags) = (r.rip, r.rflags);
}

pub(crate) fn regs_to(state: &VcpuState) -> kvm_regs {
    let g = &state.gpr;
    kvm_regs {
        rax: g[gpr::RAX],
        rcx: g[gpr::RCX],
        rdx: g[gpr::RDX],
        rbx: g[gpr::RBX],
        rsp: g[gpr::RSP],
        rbp: g[gpr::RBP],
        rsi: g[gpr::RSI],
        rdi: g[gpr::RDI],
        r8: g[gpr::R8],
        r9: g[gpr::R9],
        r10: g[gpr::R10],
        r11: g[gpr::R11],
        r12: g[gpr::R12],
        r13: g[gpr::R13],
        r14: g[gpr::R14],
        r15: g[gpr::R15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

pub(crate) fn debug_from(d: &kvm_debugregs) -> [u64; 6] {
    let [d0, d1, d2, d3] = d.db;
    [d0, d1, d2, d3, d.dr6, d.dr7]
}

pub(crate) fn debug_to(dr: &[u64; 6]) -> kvm_debugregs {
    let [d0, d1, d2, d3, dr6, dr7] = *dr;
    kvm_debugregs { db: [d0, d1, d2, d3], dr6, dr7, ..Default::default() }
}

/// The neutral form of an FXSAVE image: every processor's MXCSR_MASK, no software bytes.
fn neutral(mut image: Vec<u8>) -> Vec<u8> {
    image[MXCSR_MASK_AT..MXCSR_MASK_AT + 4].copy_from_slice(&0xffffu32.to_le_bytes());
    image[FXSAVE_SOFTWARE..].fill(0);
    image
}

/// The first 512 bytes of an XSAVE area are an FXSAVE image.
pub(crate) fn fxsave_from_xsave(area: &kvm_xsave) -> Vec<u8> {
    neutral(area.region[..FXSAVE_LEN / 4].iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// `image` has [`FXSAVE_LEN`] bytes. The header says that x87 and SSE are in it and everything else is
/// in its initial state.
pub(crate) fn fxsave_to_xsave(image: &[u8]) -> kvm_xsave {
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(image.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    area.region[FXSAVE_SOFTWARE / 4..].fill(0);
    area.region[FXSAVE_LEN / 4] = XSTATE_X87_SSE;
    area
}

/// For a KVM without XSAVE.
pub(crate) fn fxsave_from_fpu(fpu: &kvm_fpu) -> Vec<u8> {
    let mut image = vec![0; FXSAVE_LEN];
    image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    image[4] = fpu.ftwx;
    image[6..8].copy_from_slice(&fpu.last_opcode.to_le_bytes());
    image[8..16].copy_from_slice(&fpu.last_ip.to_le_bytes());
    image[16..24].copy_from_slice(&fpu.last_dp.to_le_bytes());
    image[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    image[32..160].copy_from_slice(fpu.fpr.as_flattened());
    image[160..416].copy_from_slice(fpu.xmm.as_flattened());
    neutral(image)
}

/// `image` has [`FXSAVE_LEN`] bytes.
pub(crate) fn fxsave_to_fpu(image: &[u8]) -> kvm_fpu {
    let u16_at = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let u64_at = |at: usize| (0..8).fold(0u64, |sum, i| sum | u64::from(image[at + i]) << (8 * i));
    let mut fpu = kvm_fpu {
        fcw: u16_at(0),
        fsw: u16_at(2),
        ftwx: image[4],
        last_opcode: u16_at(6),
        last_ip: u64_at(8),
        last_dp: u64_at(16),
        mxcsr: u64_at(24) as u32,
        ..Default::default()
    };
    fpu.fpr.as_flattened_mut().copy_from_slice(&image[32..160]);
    fpu.xmm.as_flattened_mut().copy_from_slice(&image[160..416]);
    fpu
}

/// Vectors of INT3 and INTO: when their delivery was cut short the instruction is still to come, and
/// raises them again.
const SOFTWARE_EXCEPTIONS: [u8; 2] = [3, 4];

pub(crate) fn events_from(e: &kvm_vcpu_events) -> Events {
    let exception = e.exception.injected != 0 && !SOFTWARE_EXCEPTIONS.contains(&e.exception.nr);
    let code = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
    let shadow = u32::from(e.interrupt.shadow);
    Events {
        exception: exception.then_some((e.exception.nr, code)),
        // As above: INT n is still to come.
        interrupt: (e.interrupt.injected != 0 && e.interrupt.soft == 0).then_some(e.interrupt.nr),
        nmi_pending: e.nmi.pending != 0 || e.nmi.injected != 0,
        // One that is being delivered masks itself, and will again.
        nmi_masked: e.nmi.masked != 0 && e.nmi.injected == 0,
        sti_shadow: shadow & KVM_X86_SHADOW_INT_STI != 0,
        movss_shadow: shadow & KVM_X86_SHADOW_INT_MOV_SS != 0,
    }
}

pub(crate) fn events_to(e: &Events) -> kvm_vcpu_events {
    let mut out = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some((vector, code)) = e.exception {
        out.exception.injected = 1;
        out.exception.nr = vector;
        out.exception.has_error_code = u8::from(code.is_some());
        out.exception.error_code = code.unwrap_or(0);
    }
    if let Some(vector) = e.interrupt {
        out.interrupt.injected = 1;
        out.interrupt.nr = vector;
    }
    out.nmi.pending = u8::from(e.nmi_pending);
    out.nmi.masked = u8::from(e.nmi_masked);
    if e.sti_shadow {
        out.interrupt.shadow |= KVM_X86_SHADOW_INT_STI as u8;
    }
    if e.movss_shadow {
        out.interrupt.shadow |= KVM_X86_SHADOW_INT_MOV_SS as u8;
    }
    out
}

pub(crate) fn mp_state_from(number: u32) -> MpState {
    match number {
        KVM_MP_STATE_UNINITIALIZED => MpState::Uninitialized,
        KVM_MP_STATE_INIT_RECEIVED => MpState::WaitForSipi,
        KVM_MP_STATE_HALTED | KVM_MP_STATE_AP_RESET_HOLD => MpState::Halted,
        _ => MpState::Runnable,
    }
}

pub(crate) fn mp_state_to(state: MpState) -> u32 {
    match state {
        MpState::Runnable => KVM_MP_STATE_RUNNABLE,
        MpState::Halted => KVM_MP_STATE_HALTED,
        MpState::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        MpState::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    }
}
