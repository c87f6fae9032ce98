//! Saving and restoring one vCPU, each in its fixed order (DESIGN.md §3; the same words in
//! `hv_soft`'s `x86cpu/state.rs`).
//!
//! Restore: CPUID (set when the vCPU was made), control and segment registers with the APIC base, TSC,
//! other MSRs, plain registers, local APIC, deadline, pending events, run state last. Save: run state
//! first, because asking for it makes KVM take in INIT and SIPI.

use arch::x86_64::msr;
use arch::x86_64::regs::Efer;
use arch::x86_64::state::{LapicState, MpState, Msrs, VcpuState};
use hv::Error;
use kvm_bindings::{kvm_lapic_state, kvm_mp_state};
use kvm_ioctls::VcpuFd;

use crate::abi::{self, ENGINE, host, refused};
use crate::convert::{self, FXSAVE_LEN};
use crate::vm::Shared;

/// Bytes of a local APIC's register page.
const LAPIC_LEN: usize = 1024;
/// xAPIC offsets of register blocks of 8 × 16 bytes (SDM vol. 3, 11.4.1).
const LAPIC_ISR: usize = 0x100;
const LAPIC_TMR: usize = 0x180;
const LAPIC_IRR: usize = 0x200;

const EFER_KNOWN: u64 = Efer::SCE.bits() | Efer::LME.bits() | Efer::LMA.bits() | Efer::NXE.bits();

fn bad(what: String) -> Error {
    Error::BadState { engine: ENGINE, what }
}

/// MSRs of the neutral state that are MSRs for KVM, too (EFER and the APIC base travel with the control
/// registers).
fn msr_list(m: &Msrs) -> [(u32, u64); 15] {
    [
        (msr::IA32_STAR, m.star),
        (msr::IA32_LSTAR, m.lstar),
        (msr::IA32_CSTAR, m.cstar),
        (msr::IA32_FMASK, m.fmask),
        (msr::IA32_KERNEL_GS_BASE, m.kernel_gs_base),
        (msr::IA32_SYSENTER_CS, m.sysenter_cs),
        (msr::IA32_SYSENTER_ESP, m.sysenter_esp),
        (msr::IA32_SYSENTER_EIP, m.sysenter_eip),
        (msr::IA32_PAT, m.pat),
        (msr::IA32_MISC_ENABLE, m.misc_enable),
        (msr::IA32_MTRR_DEF_TYPE, m.mtrr_def_type),
        (msr::IA32_TSC_AUX, m.tsc_aux),
        (msr::IA32_TSC_ADJUST, m.tsc_adjust),
        (msr::KVM_WALL_CLOCK_NEW, m.kvm_wall_clock),
        (msr::KVM_SYSTEM_TIME_NEW, m.kvm_system_time),
    ]
}

fn msrs_from(fd: &VcpuFd, out: &mut Msrs) -> Result<(), Error> {
    let numbers = msr_list(out).map(|(number, _)| number);
    let values = abi::get_msrs(fd, numbers)?.map(|value| value.unwrap_or(0));
    let slots = [
        &mut out.star,
        &mut out.lstar,
        &mut out.cstar,
        &mut out.fmask,
        &mut out.kernel_gs_base,
        &mut out.sysenter_cs,
        &mut out.sysenter_esp,
        &mut out.sysenter_eip,
        &mut out.pat,
        &mut out.misc_enable,
        &mut out.mtrr_def_type,
        &mut out.tsc_aux,
        &mut out.tsc_adjust,
        &mut out.kvm_wall_clock,
        &mut out.kvm_system_time,
    ];
    for (slot, value) in slots.into_iter().zip(values) {
        *slot = value;
    }
    Ok(())
}

/// Writes those that differ from `known`. An MSR that this KVM does not have and that is 0 is as good as
/// written.
fn write_msrs(fd: &VcpuFd, wanted: &Msrs, known: Option<&Msrs>) -> Result<(), Error> {
    let mut pairs = msr_list(wanted).to_vec();
    if let Some(known) = known {
        let known = msr_list(known);
        pairs.retain(|pair| !known.contains(pair));
    }
    let lost = abi::set_msrs(fd, &pairs)?.into_iter().find(|(_, value)| *value != 0);
    match lost {
        None => Ok(()),
        Some((number, value)) => Err(bad(format!("KVM refuses {value:#x} in MSR {number:#x}"))),
    }
}

pub(crate) fn guest_tsc(fd: &VcpuFd) -> Result<u64, Error> {
    let [tsc] = abi::get_msrs(fd, [msr::IA32_TSC])?;
    Ok(tsc.unwrap_or(0))
}

/// The whole state; no exit is half done.
pub(crate) fn save(fd: &VcpuFd, shared: &Shared) -> Result<VcpuState, Error> {
    let mp_state = fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?;
    let mut state = VcpuState {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        seg: Default::default(),
        tr: Default::default(),
        ldtr: Default::default(),
        gdtr: Default::default(),
        idtr: Default::default(),
        cr0: 0,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        cr8: 0,
        dr: convert::debug_from(&fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?),
        fxsave: save_fpu(fd, shared)?,
        msrs: Msrs::default(),
        tsc: 0,
        lapic: LapicState { regs: Vec::new(), deadline_ticks: None },
        events: Default::default(),
        mp_state: convert::mp_state_from(mp_state.mp_state),
    };
    convert::regs_from(&fd.get_regs().map_err(host("KVM_GET_REGS"))?, &mut state);
    convert::sregs_from(&fd.get_sregs().map_err(host("KVM_GET_SREGS"))?, &mut state);
    msrs_from(fd, &mut state.msrs)?;
    let lapic = fd.get_lapic().map_err(host("KVM_GET_LAPIC"))?;
    state.lapic.regs = lapic.regs.iter().map(|byte| *byte as u8).collect();
    let [tsc, deadline] = abi::get_msrs(fd, [msr::IA32_TSC, msr::IA32_TSC_DEADLINE])?;
    state.tsc = tsc.unwrap_or(0);
    state.lapic.deadline_ticks = deadline.filter(|d| *d != 0).map(|d| d.saturating_sub(state.tsc));
    state.events = convert::events_from(&fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?);
    Ok(state)
}

fn save_fpu(fd: &VcpuFd, shared: &Shared) -> Result<Vec<u8>, Error> {
    if shared.has_xsave {
        // Unlike KVM_GET_FPU this knows about components in their initial state.
        Ok(convert::fxsave_from_xsave(&fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?))
    } else {
        Ok(convert::fxsave_from_fpu(&fd.get_fpu().map_err(host("KVM_GET_FPU"))?))
    }
}

fn load_fpu(fd: &VcpuFd, shared: &Shared, image: &[u8]) -> Result<(), Error> {
    if shared.has_xsave {
        abi::set_xsave(fd, &convert::fxsave_to_xsave(image))
    } else {
        fd.set_fpu(&convert::fxsave_to_fpu(image)).map_err(refused("FPU state"))
    }
}

/// What KVM does not check, or checks without a word.
fn check(state: &VcpuState) -> Result<(), Error> {
    let require = |good: bool, what: &dyn Fn() -> String| if good { Ok(()) } else { Err(bad(what())) };
    require(state.fxsave.len() == FXSAVE_LEN, &|| format!("FXSAVE image of {} bytes", state.fxsave.len()))?;
    require(state.fxsave[26..28] == [0, 0], &|| "MXCSR has reserved bits set".into())?;
    require(state.lapic.regs.len() == LAPIC_LEN, &|| {
        format!("the local APIC page has {} bytes instead of {LAPIC_LEN}", state.lapic.regs.len())
    })?;
    // KVM checks only the long-mode bits of EFER here.
    let efer = state.msrs.efer;
    require(efer & !EFER_KNOWN == 0, &|| {
        format!("EFER {efer:#x} has bits that the CPU template does not offer")
    })?;
    require(state.cr8 < 16, &|| format!("CR8 {:#x}", state.cr8))?;
    require(state.dr[4] >> 32 == 0 && state.dr[5] >> 32 == 0, &|| "DR6 or DR7 has bits above 31".into())?;
    for block in [LAPIC_ISR, LAPIC_IRR] {
        require(state.lapic.regs[block..block + 2] == [0, 0], &|| {
            "the local APIC holds an interrupt with a vector below 16".into()
        })?;
    }
    if let Some((vector, code)) = state.events.exception {
        let good = vector < 32 && vector != 2 && code.is_none_or(|c| c <= 0xffff);
        require(good, &|| format!("pending exception {vector} with error code {code:?}"))?;
    }
    let vector = state.events.interrupt.unwrap_or(u8::MAX);
    require(vector >= 16, &|| format!("pending interrupt with vector {vector}"))
}

/// Loads a whole state.
pub(crate) fn restore(fd: &VcpuFd, shared: &Shared, id: u32, state: &VcpuState) -> Result<(), Error> {
    check(state)?;
    fd.set_sregs(&convert::sregs_to(state)).map_err(refused("control and segment registers"))?;
    if shared.time_travels {
        let refused = abi::set_msrs(fd, &[(msr::IA32_TSC, state.tsc)])?;
        if !refused.is_empty() {
            return Err(bad(format!("KVM refuses to set the TSC to {:#x}", state.tsc)));
        }
    }
    write_msrs(fd, &state.msrs, None)?;
    fd.set_regs(&convert::regs_to(state)).map_err(refused("registers"))?;
    load_fpu(fd, shared, &state.fxsave)?;
    fd.set_debug_regs(&convert::debug_to(&state.dr)).map_err(refused("debug registers"))?;
    load_lapic(fd, shared, id, state)?;
    fd.set_vcpu_events(&convert::events_to(&state.events)).map_err(refused("pending events"))?;
    load_mp_state(fd, state.mp_state)
}

fn load_mp_state(fd: &VcpuFd, mp_state: MpState) -> Result<(), Error> {
    let mp_state = kvm_mp_state { mp_state: convert::mp_state_to(mp_state) };
    fd.set_mp_state(mp_state).map_err(refused("run state"))
}

fn load_lapic(fd: &VcpuFd, shared: &Shared, id: u32, state: &VcpuState) -> Result<(), Error> {
    let mut lapic = kvm_lapic_state::default();
    for (to, from) in lapic.regs.iter_mut().zip(&state.lapic.regs) {
        *to = *from as _;
    }
    // An acknowledgement that is still to come must find its way to our IOAPIC.
    let pending_level = (16..=255u8).filter(|vector| {
        let (byte, mask) = (usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8), 1 << (vector % 8));
        let set = |block: usize| state.lapic.regs[block + byte] & mask != 0;
        set(LAPIC_TMR) && (set(LAPIC_ISR) || set(LAPIC_IRR))
    });
    for vector in pending_level {
        shared.watch_level(id, vector)?;
    }
    fd.set_lapic(&lapic).map_err(refused("local APIC"))?;
    if let Some(ticks) = state.lapic.deadline_ticks {
        let due = guest_tsc(fd)?.saturating_add(ticks).max(1);
        if !abi::set_msrs(fd, &[(msr::IA32_TSC_DEADLINE, due)])?.is_empty() {
            return Err(bad("KVM refuses the TSC deadline".into()));
        }
    }
    Ok(())
}

/// After an assisted instruction: what it changed. Local APIC and TSC have gone on meanwhile and stay.
pub(crate) fn load_changes(
    fd: &VcpuFd,
    shared: &Shared,
    old: &VcpuState,
    new: &VcpuState,
) -> Result<(), Error> {
    let (before, after) = (convert::sregs_to(old), convert::sregs_to(new));
    if before != after {
        fd.set_sregs(&after).map_err(refused("control and segment registers"))?;
    }
    write_msrs(fd, &new.msrs, Some(&old.msrs))?;
    if old.fxsave != new.fxsave {
        load_fpu(fd, shared, &new.fxsave)?;
    }
    if old.dr != new.dr {
        fd.set_debug_regs(&convert::debug_to(&new.dr)).map_err(refused("debug registers"))?;
    }
    fd.set_regs(&convert::regs_to(new)).map_err(refused("registers"))?;
    // After the registers: setting them drops a pending exception.
    fd.set_vcpu_events(&convert::events_to(&new.events)).map_err(refused("pending events"))?;
    if old.mp_state != new.mp_state {
        load_mp_state(fd, new.mp_state)?;
    }
    Ok(())
}
