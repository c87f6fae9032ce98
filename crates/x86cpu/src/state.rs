//! Save and restore: between [`Cpu`] and `arch`'s neutral [`VcpuState`].
//!
//! A state may come from a hostile file: everything is checked before anything is loaded. Loading
//! follows the fixed order of DESIGN.md §3: control and segment registers with the APIC base, TSC,
//! other MSRs, local APIC and deadline, pending events, run state.

use arch::x86_64::regs::{Cr0, Cr4, Efer, Rflags, seg};
use arch::x86_64::state::{Segment, VcpuState};
use thiserror::Error;

use crate::cpu::Cpu;
use crate::lapic::Lapic;
use crate::mmu::is_canonical;
use crate::sys::{CR0_KNOWN, EFER_KNOWN, pat_is_valid};

/// A saved state that no CPU could be in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadState(pub String);

/// RFLAGS bits that must be zero: reserved ones and virtual-8086 mode, which 64-bit guests cannot be in.
const RFLAGS_ZERO: u64 = !0x3d_7fd7;
/// Segment attribute bits of `arch::x86_64::state::Segment::attr`.
const ATTR_KNOWN: u32 = 0x1_f0ff;

fn require(good: bool, what: impl FnOnce() -> String) -> Result<(), BadState> {
    if good { Ok(()) } else { Err(BadState(what())) }
}

impl Cpu {
    /// The whole state. An instruction that waits for the outside ([`Cpu::settle`]) has not begun.
    pub fn save(&mut self) -> VcpuState {
        let lapic = self.lapic.save(&self.clock);
        let mut msrs = self.msrs;
        msrs.apic_base = self.lapic.base();
        VcpuState {
            gpr: std::array::from_fn(|i| self.gpr[i]),
            rip: self.rip,
            rflags: self.rflags(),
            seg: std::array::from_fn(|i| self.seg[i]),
            tr: self.tr,
            ldtr: self.ldtr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.lapic.cr8(),
            dr: self.dr,
            fxsave: self.fpu.fxsave(true, 16).to_vec(),
            msrs,
            tsc: self.tsc(),
            lapic,
            events: self.events,
            mp_state: self.mp_state,
        }
    }

    /// Loads a state; the local APIC's deadline and the TSC go on from the clock's present.
    ///
    /// # Errors
    /// [`BadState`] says what is impossible; the vCPU is unchanged then.
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), BadState> {
        self.check_control(state)?;
        check_segments(state)?;
        check_msrs(state)?;
        check_events(state)?;
        Lapic::check(&state.lapic, state.msrs.apic_base).map_err(BadState)?;
        let mut fpu = self.fpu.clone();
        require(state.fxsave.len() == 512, || format!("FXSAVE image of {} bytes", state.fxsave.len()))?;
        fpu.fxrstor(&state.fxsave, true, 16).map_err(|e| BadState(e.to_string()))?;
        self.load_state(state);
        self.fpu = fpu;
        Ok(())
    }

    fn load_state(&mut self, state: &VcpuState) {
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.seg[..6].copy_from_slice(&state.seg);
        (self.tr, self.ldtr) = (state.tr, state.ldtr);
        (self.gdtr, self.idtr) = (state.gdtr, state.idtr);
        (self.cr0, self.cr2, self.cr3, self.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        self.dr = state.dr;
        self.dr[4] |= 0xffff_0ff0;
        self.dr[5] |= 0x400;
        self.lapic.tsc_offset = state.tsc.wrapping_sub(self.clock.tsc());
        self.msrs = state.msrs;
        self.set_rflags(state.rflags);
        self.lapic.restore(&state.lapic, state.msrs.apic_base, &self.clock);
        self.events = state.events;
        self.mp_state = state.mp_state;
        self.io.clear();
        self.outbox = None;
        self.failure = None;
        self.mmu.set_cr3(state.cr3);
        self.mmu.flush_all();
        self.forget_code();
        self.update_mode();
        self.attention = true;
    }

    /// After a restore, when the clock has been set and memory is there: timers and the guest's clock
    /// page follow.
    pub fn clock_changed(&mut self) {
        self.lapic.tsc_moved(&self.clock);
        self.publish_clock();
        self.attention = true;
    }

    /// When this vCPU's timer is due, in nanoseconds of the machine's clock; `None`: not armed. For
    /// waiting after [`crate::Stop::Halt`].
    pub fn timer_due_ns(&self) -> Option<u64> {
        self.lapic.deadline_ns()
    }

    fn check_control(&self, state: &VcpuState) -> Result<(), BadState> {
        let (cr0, cr4, efer) = (state.cr0, state.cr4, state.msrs.efer);
        let cr0_bits = Cr0::from_bits_retain(cr0);
        let paging = cr0_bits.contains(Cr0::PG);
        let bad_cr0 = cr0 & !CR0_KNOWN != 0
            || (paging && !cr0_bits.contains(Cr0::PE))
            || (cr0_bits.contains(Cr0::NW) && !cr0_bits.contains(Cr0::CD));
        require(!bad_cr0, || format!("CR0 {cr0:#x} is not possible"))?;
        require(cr4 & !self.cr4_known() == 0, || {
            format!("CR4 {cr4:#x} has bits that the CPU template does not offer")
        })?;
        let long = efer & Efer::LMA.bits() != 0;
        let bad_efer = efer & !EFER_KNOWN != 0 || long != (paging && efer & Efer::LME.bits() != 0);
        require(!bad_efer, || format!("EFER {efer:#x} does not go with CR0 {cr0:#x}"))?;
        require(!paging || long, || "paging outside of long mode is not supported".into())?;
        require(!long || cr4 & Cr4::PAE.bits() != 0, || "long mode without CR4.PAE".into())?;
        require(state.cr3 & !self.mmu.phys_mask() == 0, || {
            format!("CR3 {:#x} is beyond the physical address size", state.cr3)
        })?;
        require(state.cr8 < 16, || format!("CR8 {:#x}", state.cr8))?;
        let flags = state.rflags;
        require(flags & RFLAGS_ZERO == 0 && flags & Rflags::ONE.bits() != 0, || {
            format!("RFLAGS {flags:#x} has reserved bits wrong")
        })?;
        let debug = state.dr[4] >> 32 == 0 && state.dr[5] >> 32 == 0;
        require(debug, || "DR6 or DR7 has bits above 31".into())?;
        require(state.rip >> 32 == 0 || (long && is_canonical(state.rip)), || {
            format!("RIP {:#x} is not canonical", state.rip)
        })
    }
}

fn check_segments(state: &VcpuState) -> Result<(), BadState> {
    let long = state.msrs.efer & Efer::LMA.bits() != 0;
    let named = |name: &str, s: &Segment| {
        require(s.attr & !ATTR_KNOWN == 0, || format!("{name} has attribute bits {:#x}", s.attr))?;
        require(is_canonical(s.base) && (long || s.base >> 32 == 0), || {
            format!("{name} base {:#x} is not possible", s.base)
        })
    };
    for (i, name) in ["ES", "CS", "SS", "DS", "FS", "GS"].into_iter().enumerate() {
        named(name, &state.seg[i])?;
        require(i >= seg::FS || state.seg[i].base >> 32 == 0, || {
            format!("{name} base {:#x} has more than 32 bits", state.seg[i].base)
        })?;
    }
    named("TR", &state.tr)?;
    named("LDTR", &state.ldtr)?;
    for (name, table) in [("GDTR", state.gdtr), ("IDTR", state.idtr)] {
        require(is_canonical(table.base), || format!("{name} base {:#x} is not canonical", table.base))?;
    }
    if long {
        let (cs, ss) = (state.seg[seg::CS], state.seg[seg::SS]);
        // Code, present, S; the stack's DPL is the privilege.
        require(cs.attr & 0x1_0098 == 0x98, || format!("CS attributes {:#x} are not code", cs.attr))?;
        require(cs.attr & 0x6000 != 0x6000, || "CS is both 64-bit and 32-bit code".into())?;
        require((ss.attr >> 5) & 3 == u32::from(cs.selector & 3), || {
            "CS and SS disagree about the privilege level".into()
        })?;
    }
    Ok(())
}

fn check_msrs(state: &VcpuState) -> Result<(), BadState> {
    let m = &state.msrs;
    let addresses = [
        ("LSTAR", m.lstar),
        ("CSTAR", m.cstar),
        ("KERNEL_GS_BASE", m.kernel_gs_base),
        ("SYSENTER_ESP", m.sysenter_esp),
        ("SYSENTER_EIP", m.sysenter_eip),
    ];
    for (name, value) in addresses {
        require(is_canonical(value), || format!("{name} {value:#x} is not canonical"))?;
    }
    require(pat_is_valid(m.pat), || format!("PAT {:#x} names reserved memory types", m.pat))?;
    require(m.tsc_aux >> 32 == 0, || format!("TSC_AUX {:#x}", m.tsc_aux))?;
    require(m.fmask >> 32 == 0, || format!("FMASK {:#x}", m.fmask))
}

fn check_events(state: &VcpuState) -> Result<(), BadState> {
    if let Some((vector, error)) = state.events.exception {
        let good = vector < 32 && vector != 2 && error.is_none_or(|e| e <= 0xffff);
        require(good, || format!("pending exception {vector} with error code {error:?}"))?;
    }
    let vector = state.events.interrupt.unwrap_or(u8::MAX);
    require(vector >= 16, || format!("pending interrupt with vector {vector}"))
}
