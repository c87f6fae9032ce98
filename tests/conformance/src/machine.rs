//! A soft CPU in user mode for one test: its code at [`CODE`], the memory that FEX's own harness maps and what the
//! test asks for; the kernel in the upper half, where every exception leads to a HLT whose address names its vector.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arch::x86_64::cpuid::{for_vcpu, portable};
use arch::x86_64::state::{MpState, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

/// Where a test's code lies.
pub const CODE: u64 = 0x1_0000;
/// Memory of the machine, bytes.
const MEMORY: u64 = 64 << 20;
/// Instructions that a test may take: the longest of them loops some millions of times.
const LONGEST: u64 = 400_000_000;

/// Address of the kernel's pages: GDT with TSS and LDT, IDT, handlers, stack.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const TSS: u64 = KERNEL + 0x100;
/// Descriptors of 32-bit code, data and stack, as FEX's own harness has them.
const LDT: u64 = KERNEL + 0x200;
const IDT: u64 = KERNEL + 0x1000;
const HANDLERS: u64 = KERNEL + 0x2000;
const STACK: u64 = KERNEL + 0x4000;
const ROOT: u64 = 0x1000;

/// How a test ended.
pub struct End {
    /// Vector of the exception: 13, from the HLT that a test ends with, is how it should.
    pub vector: u8,
    /// With RIP, RSP and RFLAGS as they were in user mode.
    pub state: VcpuState,
    /// Bytes at RIP, as many as an instruction can have, or less at the end of what is mapped.
    pub code: Vec<u8>,
}

/// One test's machine.
pub struct Machine {
    memory: GuestMemory,
    cpu: Cpu,
    /// The first physical page that nobody has.
    free: u64,
    is_32_bit: bool,
}

impl Machine {
    /// With code and nothing else.
    ///
    /// # Errors
    /// Where the host has no memory for it, or the code does not fit.
    pub fn new(code: &[u8], is_32_bit: bool, engine: Engine) -> Result<Machine> {
        let memory = GuestMemory::new(MEMORY).context("making a machine's memory")?;
        // It stands, so that both engines see the same time; not at 0, which a test takes for no time.
        let clock = Arc::new(Clock::repeatable(1_000_000));
        clock.advance(1_000_000);
        let mut cpu = Cpu::new(CpuConfig {
            memory: memory.clone(),
            id: 0,
            cpuid: for_vcpu(&portable(1, 1_000_000), 0).into(),
            clock,
            apic_bus: Arc::new(ApicBus::new(1)),
        });
        cpu.set_engine(engine);
        let mut machine = Machine { memory, cpu, free: ROOT + 0x1000, is_32_bit };
        let kernel = machine.map(KERNEL, 0x4000, 3)?;
        machine.lay_kernel(kernel)?;
        // The harness maps ten pages for data, and two around 0xe8000000.
        machine.map(0xe000_0000, 0xa000, 7)?;
        machine.map(0xe7ff_f000, 0x2000, 7)?;
        if is_32_bit {
            machine.map(0xc000_0000, 0x1000, 7)?;
        }
        machine.map(CODE, code.len() as u64, 7)?;
        machine.write(CODE, code)?;
        Ok(machine)
    }

    /// More memory for the test: whole pages around the range, those that are not there yet. Returns where the
    /// first of them lies.
    ///
    /// # Errors
    /// Where there is too little of it.
    pub fn map(&mut self, at: u64, len: u64, bits: u64) -> Result<u64> {
        let end =
            at.checked_add(len.next_multiple_of(0x1000)).context("a range ends past the last address")?;
        if len > MEMORY {
            bail!("{len:#x} bytes of memory at {at:#x}: the test machine has {MEMORY:#x}");
        }
        let mut first = None;
        for page in (at & !0xfff..end).step_by(0x1000) {
            let mut table = ROOT;
            for level in [39, 30, 21] {
                table = self.entry(table + ((page >> level) & 511) * 8, 7)?;
            }
            let physical = self.entry(table + ((page >> 12) & 511) * 8, bits)?;
            first.get_or_insert(physical);
        }
        Ok(first.unwrap_or(0))
    }

    /// What a table entry leads to; a new page if nothing.
    fn entry(&mut self, at: u64, bits: u64) -> Result<u64> {
        let old: u64 = self.memory.read_le(at)?;
        if old != 0 {
            return Ok(old & !0xfff);
        }
        let new = self.free;
        self.free += 0x1000;
        if self.free > MEMORY {
            bail!("more memory than the {MEMORY:#x} bytes that the test machine has");
        }
        self.memory.write_le(at, new | bits)?;
        Ok(new)
    }

    /// Writes to mapped memory.
    ///
    /// # Errors
    /// Where it is not.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        for (i, byte) in bytes.iter().enumerate() {
            let at = at + i as u64;
            let physical = self.physical(at)?.with_context(|| format!("no memory at {at:#x}"))?;
            self.memory.write(physical, &[*byte])?;
        }
        Ok(())
    }

    fn physical(&self, at: u64) -> Result<Option<u64>> {
        let mut table = ROOT;
        for level in [39, 30, 21, 12] {
            let entry: u64 = self.memory.read_le(table + ((at >> level) & 511) * 8)?;
            if entry == 0 {
                return Ok(None);
            }
            table = entry & !0xfff;
        }
        Ok(Some(table + (at & 0xfff)))
    }

    fn lay_kernel(&self, kernel: u64) -> Result<()> {
        let put = |at: u64, value: u64| self.memory.write_le(at - KERNEL + kernel, value);
        // Linux's selectors, which tests know: kernel code, kernel data, user code of 32 bits, user data, user code.
        put(KERNEL + 0x10, 0x00af_9b00_0000_ffff)?;
        put(KERNEL + 0x18, 0x00cf_9300_0000_ffff)?;
        put(KERNEL + 0x20, 0x00cf_fb00_0000_ffff)?;
        put(KERNEL + 0x28, 0x00cf_f300_0000_ffff)?;
        put(KERNEL + 0x30, 0x00af_fb00_0000_ffff)?;
        put(LDT + 0x08, 0x00cf_fb00_0000_ffff)?;
        put(LDT + 0x10, 0x00cf_f300_0000_ffff)?;
        put(LDT + 0x18, 0x00cf_f300_0000_ffff)?;
        put(TSS + 4, STACK)?;
        // The I/O bitmap begins behind the segment: no ports.
        put(TSS + 0x60, 0x68 << 48)?;
        for vector in 0..256u64 {
            let handler = HANDLERS + vector * 4;
            let gate = (handler & 0xffff) | 0x10 << 16 | 0xee00 << 32 | ((handler >> 16) & 0xffff) << 48;
            put(IDT + 16 * vector, gate)?;
            put(IDT + 16 * vector + 8, handler >> 32)?;
            self.memory.write(handler - KERNEL + kernel, &[0xf4])?;
        }
        Ok(())
    }

    fn start(&mut self) -> VcpuState {
        let mut s = self.cpu.save();
        let user = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
        s.seg = [user(0x2b, 0xc0f3); 6];
        s.seg[1] = if self.is_32_bit { user(0x23, 0xc0fb) } else { user(0x33, 0xa0fb) };
        s.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, attr: 0x8b };
        s.ldtr = Segment { selector: 0x50, base: LDT, limit: 0x1f, attr: 0x82 };
        s.gdtr = TableReg { base: KERNEL, limit: 0x37 };
        s.idtr = TableReg { base: IDT, limit: 0xfff };
        // As Linux has them: PE MP ET NE WP AM PG; PAE OSFXSR OSXMMEXCPT; LME LMA NXE SCE.
        (s.cr0, s.cr3, s.cr4, s.msrs.efer) = (0x8005_0033, ROOT, 0x620, 0xd01);
        s.rip = CODE;
        s.rflags = 0x202;
        s.gpr = [0; 16];
        // FINIT's control word, all registers empty; MXCSR as after a reset.
        s.fxsave = vec![0; 512];
        s.fxsave[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        s.fxsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        s.mp_state = MpState::Runnable;
        s
    }

    /// Runs the code to its HLT, or whatever ends it.
    ///
    /// # Errors
    /// Where it does not end in an exception within [`LONGEST`] instructions.
    pub fn run(&mut self) -> Result<End> {
        let start = self.start();
        self.cpu.restore(&start).context("the start state")?;
        let mut stop = Stop::Budget;
        while stop == Stop::Budget && self.cpu.instructions() < LONGEST {
            stop = self.cpu.run(1 << 20);
        }
        let mut state = self.cpu.save();
        let vector = state.rip.wrapping_sub(HANDLERS) / 4;
        if stop != Stop::Halt || vector > 255 {
            bail!("{stop:?} at {:#x} after {} instructions", state.rip, self.cpu.instructions());
        }
        let error = u64::from(matches!(vector, 8 | 10..=14 | 17 | 21));
        let frame = |slot: u64| -> Result<u64> {
            let at = state.gpr[4].wrapping_add((error + slot) * 8);
            let physical = self.physical(at)?.context("the exception's frame is not in memory")?;
            Ok(self.memory.read_le(physical)?)
        };
        let (rip, rflags, rsp) = (frame(0)?, frame(2)?, frame(3)?);
        (state.rip, state.rflags, state.gpr[4]) = (rip, rflags, rsp);
        let mut code = Vec::new();
        for at in rip..rip.saturating_add(15) {
            let Some(physical) = self.physical(at)? else { break };
            code.push(self.memory.read_le::<u8>(physical)?);
        }
        Ok(End { vector: vector as u8, state, code })
    }
}
