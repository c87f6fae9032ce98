//! Runs a case on the whole soft CPU: user mode in a flat 64-bit address space, like the host's.
//!
//! Physical memory holds page tables, a GDT, an IDT, a TSS, the scratch page and the code page; the
//! last two are mapped for the user at the addresses that the native side uses. After the
//! instruction stands `int 0x80`, at the branch target `int 0x81`, and every exception has a gate
//! too: whatever happens, the CPU ends at a HLT in the kernel whose address names the vector, with
//! the user's registers as they were and the rest in the stack frame.

use std::sync::Arc;

use arch::x86_64::cpuid::CpuidLeaf;
use arch::x86_64::state::{MpState, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

use crate::case::{CODE, Case, End, GS_BASE, Outcome, SCRATCH, SCRATCH_LEN, TARGET};

const TABLES: u64 = 0x1000;
const SCRATCH_PHYS: u64 = 0x1_0000;
const CODE_PHYS: u64 = 0x1_1000;
/// The kernel's pages: GDT and TSS, IDT, handlers, stack.
const KERNEL_PHYS: u64 = 0x2_0000;
const KERNEL: u64 = 0x2300_0000;
const TSS: u64 = KERNEL + 0x100;
const IDT: u64 = KERNEL + 0x1000;
const HANDLERS: u64 = KERNEL + 0x2000;
const STACK: u64 = KERNEL + 0x4000;

/// A soft CPU that runs one case after the other.
pub struct Machine {
    memory: GuestMemory,
    cpu: Cpu,
    start: VcpuState,
}

fn put(memory: &GuestMemory, at: u64, v: u64) {
    memory.write_le(at, v).expect("the machine's own layout lies in its memory");
}

/// PML4, PDPT and PD for the low gigabyte, a page table for each of the three areas.
fn lay_tables(memory: &GuestMemory) {
    put(memory, TABLES, (TABLES + 0x1000) | 7);
    put(memory, TABLES + 0x1000, (TABLES + 0x2000) | 7);
    let areas =
        [(SCRATCH, SCRATCH_PHYS, 1, 7), (CODE & !0xfff, CODE_PHYS, 1, 7), (KERNEL, KERNEL_PHYS, 4, 3)];
    for (i, (at, phys, pages, bits)) in areas.into_iter().enumerate() {
        let table = TABLES + 0x3000 + 0x1000 * i as u64;
        put(memory, TABLES + 0x2000 + ((at >> 21) & 511) * 8, table | 7);
        for p in 0..pages {
            put(memory, table + (((at >> 12) & 511) + p) * 8, (phys + 0x1000 * p) | bits);
        }
    }
}

/// GDT, TSS, IDT and the handlers.
fn lay_kernel(memory: &GuestMemory) {
    let at = |v: u64| v - KERNEL + KERNEL_PHYS;
    // Null, (unused), kernel code, kernel data, user code, user data, TSS.
    put(memory, at(KERNEL) + 0x10, 0x00af_9b00_0000_ffff);
    put(memory, at(KERNEL) + 0x18, 0x00cf_9300_0000_ffff);
    put(memory, at(KERNEL) + 0x20, 0x00af_fb00_0000_ffff);
    put(memory, at(KERNEL) + 0x28, 0x00cf_f300_0000_ffff);
    put(memory, at(TSS) + 4, STACK);
    for vector in 0..0x82u64 {
        let handler = HANDLERS + vector * 4;
        let gate = (handler & 0xffff) | 0x10 << 16 | 0xee00 << 32 | ((handler >> 16) & 0xffff) << 48;
        put(memory, at(IDT) + 16 * vector, gate);
        put(memory, at(IDT) + 16 * vector + 8, handler >> 32);
        memory.write(at(handler), &[0xf4]).expect("handlers lie in memory");
    }
}

/// User mode, everything the portable profile's kernel would have switched on.
fn start_state(mut s: VcpuState) -> VcpuState {
    let user = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
    s.seg = [user(0x2b, 0xc0f3); 6];
    s.seg[1] = user(0x23, 0xa0fb);
    s.seg[5].base = GS_BASE;
    s.tr = Segment { selector: 0x30, base: TSS, limit: 0x67, attr: 0x8b };
    s.gdtr = TableReg { base: KERNEL, limit: 0x3f };
    s.idtr = TableReg { base: IDT, limit: 0x81f };
    s.cr0 = 0x8001_0033;
    s.cr3 = TABLES;
    s.cr4 = 0x620;
    s.msrs.efer = 0xd01;
    s.rip = CODE;
    s.mp_state = MpState::Runnable;
    s
}

impl Machine {
    /// A machine of 256 KiB whose CPU executes so.
    pub fn new(engine: Engine) -> Machine {
        let memory = GuestMemory::new(0x4_0000).expect("256 KiB of address space");
        lay_tables(&memory);
        lay_kernel(&memory);
        let mut cpu = Cpu::new(CpuConfig {
            memory: memory.clone(),
            id: 0,
            cpuid: Arc::from(Vec::<CpuidLeaf>::new()),
            clock: Arc::new(Clock::new(1_000_000)),
            apic_bus: Arc::new(ApicBus::new(1)),
        });
        cpu.set_engine(engine);
        let start = start_state(cpu.save());
        Machine { memory, cpu, start }
    }

    /// Runs the case's instruction once.
    pub fn run(&mut self, case: &Case) -> Outcome {
        let mut code = case.bytes.clone();
        code.extend([0xcd, 0x80]);
        let place = |at: u64| at - (CODE & !0xfff) + CODE_PHYS;
        self.memory.write(place(CODE), &code).expect("code fits its page");
        self.memory.write(place(TARGET), &[0xcd, 0x81]).expect("target fits its page");
        self.memory.write(SCRATCH_PHYS, &case.before.mem[..]).expect("scratch is a page");
        let mut state = self.start.clone();
        state.gpr = case.before.gpr;
        state.rflags = case.before.rflags;
        state.fxsave = case.before.fx.to_vec();
        let mut after = case.before.clone();
        if self.cpu.restore(&state).is_err() {
            return Outcome { end: End::Unknown, rip: 0, after };
        }
        let stop = self.cpu.run(1000);
        let state = self.cpu.save();
        if stop != Stop::Halt || state.rip & !0xfff != HANDLERS & !0xfff {
            return Outcome { end: End::Unknown, rip: 0, after };
        }
        let vector = ((state.rip - HANDLERS) / 4) as u8;
        let error = u64::from(matches!(vector, 8 | 10..=14 | 17)) * 8;
        let frame = |slot: u64| {
            let at = state.gpr[4].wrapping_add(error + slot * 8).wrapping_sub(KERNEL);
            self.memory.read_le::<u64>(KERNEL_PHYS.wrapping_add(at)).unwrap_or(0)
        };
        after.gpr = state.gpr;
        after.gpr[4] = frame(3);
        after.rflags = frame(2);
        after.fx.copy_from_slice(&state.fxsave);
        let _ = self.memory.read(SCRATCH_PHYS, &mut after.mem[..SCRATCH_LEN]);
        let end = match (vector, frame(0)) {
            (0x80, rip) if rip == CODE + case.bytes.len() as u64 + 2 => End::Next,
            (0x81, rip) if rip == TARGET + 2 => End::Taken,
            _ => End::Vector(vector),
        };
        let rip = if matches!(end, End::Vector(_)) { frame(0) } else { 0 };
        Outcome { end, rip, after }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Machine::new(Engine::Interpreter)
    }
}
