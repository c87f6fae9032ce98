//! Runs a case on the whole soft CPU: user mode in a flat 64-bit address space, like the host's.
//!
//! Physical memory holds page tables, a GDT, an IDT, a TSS, a small kernel, the scratch page and the code page; the
//! last two are mapped for the user at the addresses that the native side uses. The kernel is the mirror of the native
//! side's trampoline: it loads the case's registers from the context page and goes to user mode by IRETQ. After the
//! instruction stands `int 0x80`, at the branch target `int 0x81`, and every exception has a gate too: whatever happens,
//! the kernel stores all registers in the context page, with the vector, and says so by an OUT.
//!
//! So a case costs no restore of the CPU, which forgets all code and all translations of addresses: what is translated of
//! the kernel stays, and only the code page, which is written anew for each case, is decoded and translated again.

use std::sync::Arc;

use arch::x86_64::cpuid::CpuidLeaf;
use arch::x86_64::state::{MpState, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

use crate::case::{CODE, Case, End, GS_BASE, Outcome, SCRATCH, SCRATCH_LEN, State, TARGET};

const TABLES: u64 = 0x1000;
const SCRATCH_PHYS: u64 = 0x1_0000;
const CODE_PHYS: u64 = 0x1_1000;
/// The kernel's pages: GDT and TSS, IDT, handlers, stack.
const KERNEL_PHYS: u64 = 0x2_0000;
const KERNEL: u64 = 0x2300_0000;
const TSS: u64 = KERNEL + 0x100;
const IDT: u64 = KERNEL + 0x1000;
/// One for each vector, [`HANDLER_LEN`] apart; then what all of them go on with.
const HANDLERS: u64 = KERNEL + 0x2000;
const HANDLER_LEN: u64 = 16;
const STORE: u64 = HANDLERS + 0x900;
/// The end of a page for the kernel's stack, and the page with a [`Context`]'s fields.
const STACK: u64 = KERNEL + 0x4000;
const CONTEXT: u64 = KERNEL + 0x4000;
/// The port that says that a case is done.
const DONE: u8 = 0xe9;
const VECTORS: u64 = 0x82;
/// Where the context page has the 16 general registers (RSP apart), the frame for IRETQ and the FXSAVE64 image ...
const IN: (u64, u64, u64) = (0, 0x80, 0x200);
/// ... and the same of what came out; before its frame the vector and the error code.
const OUT: (u64, u64, u64) = (0x100, 0x190, 0x400);
const OUT_VECTOR: u64 = 0x180;
/// Selectors of the user's code and stack, with which every case starts.
const USER: (u64, u64) = (0x23, 0x2b);
/// More instructions than a case takes.
const MOST: u64 = 1000;

/// A soft CPU that runs one case after the other.
pub struct Machine {
    memory: GuestMemory,
    cpu: Cpu,
    start: VcpuState,
    /// The CPU is not where the kernel has said that a case is done.
    lost: bool,
}

fn put(memory: &GuestMemory, at: u64, v: u64) {
    memory.write_le(at, v).expect("the machine's own layout lies in its memory");
}

/// PML4, PDPT and PD for the low gigabyte, a page table for each of the three areas.
fn lay_tables(memory: &GuestMemory) {
    put(memory, TABLES, (TABLES + 0x1000) | 7);
    put(memory, TABLES + 0x1000, (TABLES + 0x2000) | 7);
    let areas =
        [(SCRATCH, SCRATCH_PHYS, 1, 7), (CODE & !0xfff, CODE_PHYS, 1, 7), (KERNEL, KERNEL_PHYS, 5, 3)];
    for (i, (at, phys, pages, bits)) in areas.into_iter().enumerate() {
        let table = TABLES + 0x3000 + 0x1000 * i as u64;
        put(memory, TABLES + 0x2000 + ((at >> 21) & 511) * 8, table | 7);
        for p in 0..pages {
            put(memory, table + (((at >> 12) & 511) + p) * 8, (phys + 0x1000 * p) | bits);
        }
    }
}

/// GDT, TSS, IDT and the kernel.
fn lay_kernel(memory: &GuestMemory) {
    let at = |v: u64| v - KERNEL + KERNEL_PHYS;
    // Null, (unused), kernel code, kernel data, user code, user data, TSS.
    put(memory, at(KERNEL) + 0x10, 0x00af_9b00_0000_ffff);
    put(memory, at(KERNEL) + 0x18, 0x00cf_9300_0000_ffff);
    put(memory, at(KERNEL) + 0x20, 0x00af_fb00_0000_ffff);
    put(memory, at(KERNEL) + 0x28, 0x00cf_f300_0000_ffff);
    put(memory, at(TSS) + 4, STACK);
    for vector in 0..VECTORS {
        let handler = HANDLERS + vector * HANDLER_LEN;
        let gate = (handler & 0xffff) | 0x10 << 16 | 0xee00 << 32 | ((handler >> 16) & 0xffff) << 48;
        put(memory, at(IDT) + 16 * vector, gate);
        put(memory, at(IDT) + 16 * vector + 8, handler >> 32);
        memory.write(at(handler), &handler_code(vector, handler)).expect("handlers lie in memory");
    }
    memory.write(at(STORE), &kernel_code()).expect("the kernel lies in memory");
}

/// `push 0` where the CPU pushes no error code; `push VECTOR`; `jmp STORE`.
fn handler_code(vector: u64, at: u64) -> Vec<u8> {
    let mut code = if matches!(vector, 8 | 10..=14 | 17) { Vec::new() } else { vec![0x6a, 0] };
    code.push(0x68);
    code.extend((vector as u32).to_le_bytes());
    code.push(0xe9);
    let next = at + code.len() as u64 + 4;
    code.extend((STORE.wrapping_sub(next) as u32).to_le_bytes());
    assert!(code.len() as u64 <= HANDLER_LEN);
    code
}

/// An instruction with a memory operand at an address: opcode bytes, ModRM's register (or opcode) field, the address.
fn absolute(code: &mut Vec<u8>, opcode: &[u8], reg: u8, at: u64) {
    code.extend(opcode);
    code.extend([0x04 | (reg & 7) << 3, 0x25]);
    code.extend((at as u32).to_le_bytes());
}

/// Stores what came out, says that it is there, and starts the next case.
fn kernel_code() -> Vec<u8> {
    let mut code = Vec::new();
    let rex = |i: u8| 0x48 | (i & 8) >> 1;
    // mov [OUT + 8 i], reg: all but RSP, which is the kernel's own
    for i in (0..16).filter(|i| *i != 4) {
        absolute(&mut code, &[rex(i), 0x89], i, CONTEXT + OUT.0 + 8 * u64::from(i));
    }
    // fxsave64; pop into vector, error code, RIP, CS, RFLAGS, RSP, SS
    absolute(&mut code, &[0x48, 0x0f, 0xae], 0, CONTEXT + OUT.2);
    (0..7).for_each(|i| absolute(&mut code, &[0x8f], 0, CONTEXT + OUT_VECTOR + 8 * i));
    code.extend([0xe6, DONE]);
    // fxrstor64; push the frame from its end; mov reg, [IN + 8 i]; iretq
    absolute(&mut code, &[0x48, 0x0f, 0xae], 1, CONTEXT + IN.2);
    (0..5).rev().for_each(|i| absolute(&mut code, &[0xff], 6, CONTEXT + IN.1 + 8 * i));
    for i in (0..16).filter(|i| *i != 4) {
        absolute(&mut code, &[rex(i), 0x8b], i, CONTEXT + IN.0 + 8 * u64::from(i));
    }
    code.extend([0x48, 0xcf]);
    code
}

/// At the kernel's first instruction; everything the portable profile's kernel would have switched on.
fn start_state(mut s: VcpuState) -> VcpuState {
    let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
    s.seg = [flat(0x2b, 0xc0f3); 6];
    s.seg[1] = flat(0x10, 0xa09b);
    s.seg[2] = flat(0x18, 0xc093);
    s.seg[5].base = GS_BASE;
    s.tr = Segment { selector: 0x30, base: TSS, limit: 0x67, attr: 0x8b };
    s.gdtr = TableReg { base: KERNEL, limit: 0x3f };
    s.idtr = TableReg { base: IDT, limit: 0x81f };
    s.cr0 = 0x8001_0033;
    s.cr3 = TABLES;
    s.cr4 = 0x620;
    s.msrs.efer = 0xd01;
    s.rip = STORE;
    // Room for what the kernel pops first.
    s.gpr[4] = STACK - 7 * 8;
    s.rflags = 2;
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
        Machine { memory, cpu, start, lost: true }
    }

    /// Runs the case's instruction once.
    pub fn run(&mut self, case: &Case) -> Outcome {
        let after = case.before.clone();
        if self.lost && !self.begin() {
            return Outcome { end: End::Unknown, rip: 0, after };
        }
        self.load(case);
        self.lost = !self.go();
        let frame: [u64; 7] = std::array::from_fn(|i| self.context(OUT_VECTOR + 8 * i as u64));
        let [vector, _, rip, cs, rflags, rsp, ss] = frame;
        // A fault of the kernel's own is no answer.
        if self.lost || (cs, ss) != USER {
            self.lost = true;
            return Outcome { end: End::Unknown, rip: 0, after };
        }
        self.outcome(case, after, vector as u8, (rip, rflags, rsp))
    }

    /// Starts the CPU; it is then where it is after a case.
    fn begin(&mut self) -> bool {
        self.cpu.restore(&self.start).is_ok() && self.go()
    }

    /// Runs until the kernel says that it is done.
    fn go(&mut self) -> bool {
        matches!(self.cpu.run(MOST), Stop::PioWrite { port, .. } if port == u16::from(DONE))
    }

    fn context(&self, offset: u64) -> u64 {
        self.memory.read_le(CONTEXT - KERNEL + KERNEL_PHYS + offset).unwrap_or(0)
    }

    /// Writes code, registers and memory.
    fn load(&mut self, case: &Case) {
        let write = |at: u64, bytes: &[u8]| {
            self.memory.write(at, bytes).expect("what a case consists of fits its page");
        };
        let mut code = case.bytes.clone();
        code.extend([0xcd, 0x80]);
        let place = |at: u64| at - (CODE & !0xfff) + CODE_PHYS;
        write(place(CODE), &code);
        write(place(TARGET), &[0xcd, 0x81]);
        let before = &case.before;
        write(SCRATCH_PHYS, &before.mem[..]);
        let context = CONTEXT - KERNEL + KERNEL_PHYS;
        let frame = [CODE, USER.0, before.rflags, before.gpr[4], USER.1];
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        write(context + IN.0, &bytes(&before.gpr));
        write(context + IN.1, &bytes(&frame));
        write(context + IN.2, &before.fx);
    }

    /// What the kernel has stored.
    fn outcome(&self, case: &Case, mut after: State, vector: u8, frame: (u64, u64, u64)) -> Outcome {
        let (rip, rflags, rsp) = frame;
        let context = CONTEXT - KERNEL + KERNEL_PHYS;
        after.gpr = std::array::from_fn(|i| self.context(OUT.0 + 8 * i as u64));
        after.gpr[4] = rsp;
        after.rflags = rflags;
        let read = |at: u64, to: &mut [u8]| self.memory.read(at, to).expect("the machine's own memory");
        read(context + OUT.2, &mut after.fx);
        read(SCRATCH_PHYS, &mut after.mem[..SCRATCH_LEN]);
        let end = match (vector, rip) {
            (0x80, rip) if rip == CODE + case.bytes.len() as u64 + 2 => End::Next,
            (0x81, rip) if rip == TARGET + 2 => End::Taken,
            _ => End::Vector(vector),
        };
        let rip = if matches!(end, End::Vector(_)) { rip } else { 0 };
        Outcome { end, rip, after }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Machine::new(Engine::Interpreter)
    }
}
