//! The saved form, `arch`'s [`LapicState`]: the register page, and what remains of the deadline.

use arch::x86_64::msr::{APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_X2APIC};
use arch::x86_64::state::LapicState;

use super::Lapic;
use super::regs::{self, reg};
use super::timer::timer_mode;
use crate::clock::Clock;

/// Bytes of a saved register page.
const PAGE_LEN: usize = 1024;

impl Lapic {
    /// The whole state. What is in the mailbox is taken in first.
    pub(crate) fn save(&mut self, clock: &Clock) -> LapicState {
        self.sync();
        let mut image = self.regs;
        image[reg::CURRENT_COUNT] = self.timer.current(clock, self.regs[reg::DIVIDE]);
        image[reg::PPR] = self.ppr();
        let mut page = vec![0; PAGE_LEN];
        for (slot, value) in page.chunks_exact_mut(16).zip(image) {
            slot[..4].copy_from_slice(&value.to_le_bytes());
        }
        let tsc = clock.tsc().wrapping_add(self.tsc_offset);
        let deadline = self.timer.deadline();
        let deadline_ticks = (deadline != 0).then(|| deadline.saturating_sub(tsc));
        LapicState { regs: page, deadline_ticks }
    }

    /// Checks a saved state that may come from a hostile file; `base` is its IA32_APIC_BASE.
    ///
    /// # Errors
    /// What is impossible about it.
    pub(crate) fn check(state: &LapicState, base: u64) -> Result<(), String> {
        if state.regs.len() != PAGE_LEN {
            return Err(format!("the local APIC page has {} bytes instead of {PAGE_LEN}", state.regs.len()));
        }
        const MODE: u64 = APIC_BASE_ENABLE | APIC_BASE_X2APIC;
        if base & MODE == APIC_BASE_X2APIC || base & 0xfff & !(MODE | APIC_BASE_BSP) != 0 {
            return Err(format!("IA32_APIC_BASE {base:#x} is no mode of the local APIC"));
        }
        let word = |number: usize| word(&state.regs, number);
        // Vectors below 16 cannot pend or be in service (SDM vol. 3, 11.5.2).
        if (word(reg::IRR) | word(reg::ISR)) & 0xffff != 0 {
            return Err("the local APIC holds an interrupt with a vector below 16".into());
        }
        if (word(reg::LVT_TIMER) >> timer_mode::SHIFT) & 3 == 3 {
            return Err("the local APIC's timer is in the reserved mode".into());
        }
        Ok(())
    }

    /// Loads a state that [`Lapic::check`] found possible. The deadline runs from now.
    pub(crate) fn restore(&mut self, state: &LapicState, base: u64, clock: &Clock) {
        // What is in the mailbox belongs to the past that is replaced.
        self.mailbox.take_vectors();
        self.mailbox.take_events();
        self.base = base;
        for (number, value) in self.regs.iter_mut().enumerate() {
            *value = word(&state.regs, number);
        }
        self.regs[reg::VERSION] = regs::VERSION;
        self.regs[reg::ICR] &= !(1 << 12);
        for lvt in reg::LVTS {
            self.regs[lvt] &= !0x5000;
        }
        self.set_id();
        self.timer.stop();
        let mode = (self.regs[reg::LVT_TIMER] >> timer_mode::SHIFT) & 3;
        if mode == timer_mode::TSC_DEADLINE {
            if let Some(ticks) = state.deadline_ticks {
                let tsc = clock.tsc().wrapping_add(self.tsc_offset);
                self.timer.set_deadline(clock, tsc.saturating_add(ticks).max(1), self.tsc_offset);
            }
        } else {
            let (initial, left) = (self.regs[reg::INITIAL_COUNT], self.regs[reg::CURRENT_COUNT]);
            let periodic = mode == timer_mode::PERIODIC;
            self.timer.start_from(clock, initial, left.min(initial), self.regs[reg::DIVIDE], periodic);
        }
        self.publish();
    }
}

fn word(page: &[u8], number: usize) -> u32 {
    let at = number * 16;
    page.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}
