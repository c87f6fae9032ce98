//! What a debugger does to a machine: stop its vCPUs, look into them, let them go on.
//!
//! Everything but [`Machine::stop_at`]'s effect happens while the machine is paused. Linear addresses are translated
//! here by the vCPU's own tables (SDM vol. 3, 4.5), without touching them: a debugger's look sets no accessed bit.

use std::time::Duration;

use arch::x86_64::paging::{PAGE_SIZE, pte};
use arch::x86_64::regs::{Cr0, Cr4};
use bus::lock;
use hv::{Stops, VcpuState};

use crate::{Error, Machine};

/// Index bits of one level of tables.
const LEVEL_BITS: u32 = 9;

impl Machine {
    /// How many vCPUs it has; they are numbered from 0.
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// A vCPU's registers; the machine must be paused.
    ///
    /// # Errors
    /// The engine's; no such vCPU.
    pub fn registers(&self, vcpu: usize) -> Result<VcpuState, Error> {
        Ok(lock(self.vcpu(vcpu)?).save()?)
    }

    /// Gives a vCPU other registers; the machine must be paused.
    ///
    /// # Errors
    /// As [`Machine::registers`]; a state that no CPU could be in.
    pub fn set_registers(&self, vcpu: usize, state: &VcpuState) -> Result<(), Error> {
        Ok(lock(self.vcpu(vcpu)?).restore(state)?)
    }

    /// Where a vCPU stops from now on.
    ///
    /// # Errors
    /// As [`Machine::registers`]; more places than the engine can watch.
    pub fn stop_at(&self, vcpu: usize, stops: &Stops) -> Result<(), Error> {
        Ok(lock(self.vcpu(vcpu)?).stop_at(stops)?)
    }

    fn vcpu(&self, vcpu: usize) -> Result<&std::sync::Mutex<Box<dyn hv::Vcpu>>, Error> {
        let missing = || Error::Mismatch(format!("there is no vCPU {vcpu}"));
        self.vcpus.get(vcpu).map(|v| v.as_ref()).ok_or_else(missing)
    }

    /// Lets the vCPUs run, or `only` one of them, until one stops for its [`Stops`].
    pub fn resume_debugged(&self, only: Option<usize>) {
        if !self.world.control.is_stop_waiting() {
            self.world.control.restrict(only);
            self.resume();
        }
    }

    /// The vCPU that stopped; waits for one at most `limit`. The machine is paused then.
    pub fn stopped(&self, limit: Duration) -> Option<usize> {
        self.world.control.stopped(limit)
    }

    /// Reads at a linear address as the vCPU with this state would; how many bytes there are.
    pub fn read_linear(&self, state: &VcpuState, address: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some((gpa, len)) = self.piece(state, address, done, to.len()) {
            if self.memory.read(gpa, &mut to[done..done + len]).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Writes at a linear address, whatever its page allows; how many bytes were written.
    pub fn write_linear(&self, state: &VcpuState, address: u64, from: &[u8]) -> usize {
        let mut done = 0;
        while let Some((gpa, len)) = self.piece(state, address, done, from.len()) {
            if self.memory.write(gpa, &from[done..done + len]).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// The next piece of `len` bytes within one page, of which `done` are behind us.
    fn piece(&self, state: &VcpuState, address: u64, done: usize, len: usize) -> Option<(u64, usize)> {
        let left = len.checked_sub(done).filter(|left| *left > 0)?;
        let at = address.checked_add(done as u64)?;
        let room = (PAGE_SIZE - at % PAGE_SIZE) as usize;
        Some((self.translate(state, at)?, left.min(room)))
    }

    /// The guest-physical address behind a linear one in 64-bit mode's four levels, or without paging.
    fn translate(&self, state: &VcpuState, address: u64) -> Option<u64> {
        if state.cr0 & Cr0::PG.bits() == 0 {
            return Some(address);
        }
        // The older kinds of tables are a boot loader's, and our kernels have none.
        if state.cr4 & Cr4::PAE.bits() == 0 {
            return None;
        }
        let mut table = state.cr3 & pte::ADDR;
        for level in (0..4).rev() {
            let shift = 12 + LEVEL_BITS * level;
            let index = address >> shift & ((1 << LEVEL_BITS) - 1);
            let entry: u64 = self.memory.read_le(table + 8 * index).ok()?;
            if entry & pte::PRESENT == 0 {
                return None;
            }
            let inside = (1u64 << shift) - 1;
            if level == 0 || (level < 3 && entry & pte::LARGE != 0) {
                return Some(entry & pte::ADDR & !inside | address & inside);
            }
            table = entry & pte::ADDR;
        }
        None
    }
}
