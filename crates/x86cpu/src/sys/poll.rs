//! Events between instructions: kicks, interrupts, the timer, INIT and start-up IPIs, and the reset
//! state (SDM vol. 3, 6.9, 10.1, 10.4).

use arch::x86_64::cpuid;
use arch::x86_64::regs::{Rflags, gpr, seg};
use arch::x86_64::state::{Events, MpState, Segment, TableReg};

use super::descriptor::system;
use super::msr::MISC_ENABLE_RESET;
use crate::cpu::{Cpu, PollFlag, Stop};
use crate::lapic::event;

/// CR0 after power-up and INIT: caches off, extension type.
const CR0_RESET: u64 = 0x6000_0010;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
const NMI: u8 = 2;
/// PAUSEs in a row, about, that a waiting vCPU spends before others get their turn.
const PATIENCE: u32 = 64;

impl Cpu {
    /// Looks for what came from outside and delivers at most one interrupt.
    ///
    /// # Errors
    /// [`Stop::Poll`] after a kick, [`Stop::Halt`] when there is nothing to execute, and what
    /// delivery stops with.
    pub(crate) fn poll_events(&mut self) -> Result<(), Stop> {
        self.attention = false;
        let bits = self.poll.take();
        if bits & PollFlag::APIC != 0 {
            self.lapic.sync();
            self.take_lapic_events();
        }
        self.lapic.poll_timer(&self.clock);
        if bits & PollFlag::KICK != 0 {
            // What else there is must be seen when it goes on.
            self.attention = true;
            return Err(Stop::Poll);
        }
        if let Some((vector, error)) = self.events.exception.take() {
            return self.deliver_exception(vector, error.map(|e| e as u16));
        }
        self.deliver_pending()?;
        if self.mp_state == MpState::Runnable { Ok(()) } else { Err(Stop::Halt) }
    }

    fn deliver_pending(&mut self) -> Result<(), Stop> {
        if !matches!(self.mp_state, MpState::Runnable | MpState::Halted) {
            return Ok(());
        }
        if self.events.sti_shadow || self.events.movss_shadow {
            // One instruction first; who executes it looks here again.
            return Ok(());
        }
        if let Some(vector) = self.events.interrupt.take() {
            self.mp_state = MpState::Runnable;
            return self.deliver_interrupt(vector);
        }
        if self.events.nmi_pending && !self.events.nmi_masked {
            self.events.nmi_pending = false;
            self.events.nmi_masked = true;
            self.mp_state = MpState::Runnable;
            return self.deliver_interrupt(NMI);
        }
        if self.flags.system_bit(Rflags::IF)
            && let Some(vector) = self.lapic.pending()
        {
            self.lapic.acknowledge(vector);
            self.mp_state = MpState::Runnable;
            return self.deliver_interrupt(vector);
        }
        Ok(())
    }

    /// PAUSE: after a while of them `run` returns, since who is waited for may need this vCPU's turn.
    pub(crate) fn guest_waits(&mut self) {
        self.pauses += 1;
        if self.pauses >= PATIENCE && self.has_peers && self.outbox.is_none() {
            self.pauses = 0;
            self.outbox = Some(Stop::Budget);
            self.attention = true;
            self.leave = true;
        }
    }

    fn take_lapic_events(&mut self) {
        let events = self.lapic.take_events();
        if events & event::NMI != 0 {
            self.events.nmi_pending = true;
        }
        if events & event::INIT != 0 {
            self.init();
        }
        if events & event::SIPI != 0 && self.mp_state == MpState::WaitForSipi {
            let page = (events >> event::SIPI_VECTOR_SHIFT) & 0xff;
            self.seg[seg::CS].selector = (page << 8) as u16;
            self.seg[seg::CS].base = u64::from(page) << 12;
            self.rip = 0;
            self.mp_state = MpState::Runnable;
            self.update_mode();
        }
    }

    /// The power-up state; the boot processor runs, the others wait for INIT.
    pub(crate) fn reset(&mut self) {
        let sizes = cpuid::lookup(&self.cpuid, 0x8000_0008, 0).eax & 0xff;
        let gb_pages = cpuid::lookup(&self.cpuid, 0x8000_0001, 0).edx & 1 << 26 != 0;
        self.mmu.set_features(if sizes == 0 { 36 } else { sizes }, gb_pages);
        self.msrs = Default::default();
        self.msrs.pat = PAT_RESET;
        self.msrs.misc_enable = MISC_ENABLE_RESET;
        self.fpu = Default::default();
        self.lapic.power_up();
        self.reset_registers();
        self.mp_state = if self.id == 0 { MpState::Runnable } else { MpState::Uninitialized };
    }

    /// INIT: as the power-up state, but the MSRs, the floating-point state and the TSC stay
    /// (SDM vol. 3, table 10-1).
    fn init(&mut self) {
        let (efer, kvm) = (0, 0);
        self.msrs.efer = efer;
        self.msrs.kvm_system_time = kvm;
        self.lapic.init();
        self.reset_registers();
        self.mp_state = if self.id == 0 { MpState::Runnable } else { MpState::WaitForSipi };
    }

    fn reset_registers(&mut self) {
        self.gpr[..16].fill(0);
        self.gpr[gpr::RDX] = u64::from(cpuid::lookup(&self.cpuid, 1, 0).eax);
        self.rip = 0xfff0;
        self.events = Events::default();
        self.io.clear();
        self.outbox = None;
        let data = Segment { selector: 0, base: 0, limit: 0xffff, attr: 0x93 };
        for number in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.seg[number] = data;
        }
        self.seg[seg::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attr: 0x9b };
        self.ldtr = Segment { attr: 0x80 | system::LDT, ..data };
        self.tr = Segment { attr: 0x80 | system::TSS_BUSY, ..data };
        self.gdtr = TableReg { base: 0, limit: 0xffff };
        self.idtr = TableReg { base: 0, limit: 0xffff };
        self.cr0 = CR0_RESET;
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = 0;
        self.cr8 = 0;
        self.dr = [0, 0, 0, 0, 0xffff_0ff0, 0x400];
        self.set_rflags(2);
        self.mmu.set_cr3(0);
        self.mmu.flush_all();
        self.update_mode();
    }
}
