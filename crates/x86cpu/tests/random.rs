//! Random bytes as code: whatever they are, interpreter and translated code do the same, and neither
//! panics, hangs or grows.
//!
//! A program is a page of instructions, half of them plausible encodings and half noise, that loops over
//! itself; exceptions lead to a handler that says so and then begins somewhere in it anew, with registers that it finds in
//! memory. Both engines run it in slices of random length. Now and then, and when nothing else helps (HLT, a triple
//! fault), the CPU's whole state is restored instead, which also forgets all code.
//!
//! `SMOLVM_LONG=N` runs programs until N instructions of them ran translated, with more and longer slices: for a build with
//! an address sanitizer. `SMOLVM_SEED=N` draws other programs, so that a long run can be made in pieces.

use std::sync::Arc;

use arch::x86_64::cpuid::{for_vcpu, portable};
use arch::x86_64::regs::seg;
use arch::x86_64::state::{Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

const TABLES: u64 = 0x1000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLER: u64 = 0x8000;
/// What the handler begins anew with: 16 general registers, a frame for IRETQ, an FXSAVE64 image.
const FRESH: u64 = 0x9000;
const FRAME: u64 = FRESH + 0x80;
const FX: u64 = FRESH + 0x200;
/// The port by which the handler says that it was come to.
const ENDED: u8 = 0xe9;
/// Instructions of the handler.
const HANDLER_INSNS: u64 = 19;
/// Every so many starts the whole state is restored.
const RESTORED: u64 = 16;
const DATA: u64 = 0x2_0000;
const CODE: u64 = 0x10_0000;
const PROGRAMS: u64 = 3_000;
const SLICES: u64 = 30;
/// Programs that the same pair of machines runs, with what those before left in memory.
const TOGETHER: u64 = 16;

/// xorshift64*.
struct Rng(u64);

impl Rng {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.draw() >> 33) % n
    }

    fn byte(&mut self) -> u8 {
        self.draw() as u8
    }
}

/// Appends something like an instruction: prefixes, an opcode of one or two bytes, ModRM with a register
/// that points at the data more often than not, and what else may belong to it.
fn plausible(rng: &mut Rng, code: &mut Vec<u8>) {
    if rng.below(8) == 0 {
        code.push([0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x64, 0x65][rng.below(7) as usize]);
    }
    if rng.below(2) == 0 {
        code.push(0x40 | rng.byte() & 15);
    }
    if rng.below(3) == 0 {
        code.push(0x0f);
    }
    code.push(rng.byte());
    // [rbx+disp8], [rsi+disp8], [rdi+disp8] or a register.
    let reg = rng.byte() & 0x38;
    match rng.below(4) {
        0 => code.extend([0x43 | reg, rng.byte()]),
        1 => code.extend([0x46 | reg, rng.byte()]),
        2 => code.extend([0x47 | reg, rng.byte()]),
        _ => code.push(0xc0 | reg | rng.byte() & 7),
    }
    if rng.below(3) == 0 {
        code.push(rng.byte());
    }
}

fn program(rng: &mut Rng) -> Vec<u8> {
    let mut code = Vec::new();
    let wanted = 8 + rng.below(120) as usize;
    while code.len() < wanted {
        if rng.below(4) == 0 {
            code.extend((0..rng.below(6)).map(|_| rng.byte()));
        } else {
            plausible(rng, &mut code);
        }
    }
    // jmp back to the start, from wherever decoding finds it
    code.extend([0x90; 15]);
    let back = -(code.len() as i32 + 5);
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code
}

/// `out ENDED, al`; then `fxrstor64 [FX]`, all registers but RSP, `mov esp, FRAME`, `iretq`.
fn handler() -> Vec<u8> {
    let mut code = vec![0xe6, ENDED, 0x48, 0x0f, 0xae, 0x0c, 0x25];
    code.extend((FX as u32).to_le_bytes());
    for reg in (0..16u8).filter(|reg| *reg != 4) {
        code.extend([0x48 | (reg & 8) >> 1, 0x8b, 0x04 | (reg & 7) << 3, 0x25]);
        code.extend((FRESH as u32 + 8 * u32::from(reg)).to_le_bytes());
    }
    code.push(0xbc);
    code.extend((FRAME as u32).to_le_bytes());
    code.extend([0x48, 0xcf]);
    code
}

struct Machine {
    memory: GuestMemory,
    cpu: Cpu,
    /// What each start begins with.
    fresh: VcpuState,
    /// Instructions of the handler, at most.
    handled: u64,
}

const HALT: Slice = Slice::Stopped(Stop::Halt);

/// How a slice came out.
#[derive(Debug, PartialEq)]
enum Slice {
    /// In the middle of it.
    Budget,
    /// In the handler, which can go on.
    Ended,
    Stopped(Stop),
}

impl Machine {
    fn new(code: &[u8], engine: Engine, at: u64, seed: u64) -> Machine {
        let memory = GuestMemory::new(4 << 20).expect("memory");
        let leaves = portable(1, 1_000_000);
        let mut cpu = Cpu::new(CpuConfig {
            memory: memory.clone(),
            id: 0,
            cpuid: for_vcpu(&leaves, 0).into(),
            // Under it RDRAND is the same sequence in both.
            clock: Arc::new(Clock::repeatable(1_000_000)),
            apic_bus: Arc::new(ApicBus::new(1)),
        });
        cpu.set_engine(engine);
        let mut s = cpu.save();
        s.seg = [Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xc093 }; 6];
        s.seg[seg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: 0xa09b };
        s.gdtr = TableReg { base: GDT, limit: 0x17 };
        s.idtr = TableReg { base: IDT, limit: 0xfff };
        s.cr0 = 0x8001_0031;
        s.cr3 = TABLES;
        s.cr4 = 0x620;
        s.msrs.efer = 0x500;
        s.rflags = 2;
        let mut machine = Machine { memory, cpu, fresh: s, handled: 0 };
        machine.load(code, at);
        machine.start(at, seed);
        machine
    }

    /// Puts a program, tables and handler into memory, over what the one before made of them.
    fn load(&mut self, code: &[u8], at: u64) {
        let put = |at: u64, v: u64| self.memory.write_le(at, v).expect("RAM");
        put(TABLES, (TABLES + 0x1000) | 3);
        put(TABLES + 0x1000, (TABLES + 0x2000) | 3);
        put(TABLES + 0x2000, 0x83);
        put(TABLES + 0x2008, (2 << 20) | 0x83);
        put(GDT + 8, 0x00af_9b00_0000_ffff);
        put(GDT + 16, 0x00cf_9300_0000_ffff);
        for vector in 0..256 {
            put(IDT + 16 * vector, HANDLER | (8 << 16) | (0x8e00 << 32));
            put(IDT + 16 * vector + 8, 0);
        }
        self.memory.write(HANDLER, &handler()).expect("RAM");
        self.memory.write(at, code).expect("RAM");
    }

    /// Begins at `rip` with registers drawn from `seed`.
    fn start(&mut self, rip: u64, seed: u64) {
        self.draw(rip, seed);
        self.cpu.restore(&self.fresh).expect("a possible state");
    }

    fn draw(&mut self, rip: u64, seed: u64) {
        let mut rng = Rng(seed | 1);
        let s = &mut self.fresh;
        s.rip = rip;
        s.gpr = std::array::from_fn(|_| DATA + rng.below(0x2000));
        s.gpr[0] = rng.draw();
        s.gpr[9] = rng.draw();
    }

    /// The same by the handler, which has said that it was come to.
    fn go_on(&mut self, rip: u64, seed: u64) {
        self.draw(rip, seed);
        let s = &self.fresh;
        let frame = [s.rip, u64::from(s.seg[seg::CS].selector), s.rflags, s.gpr[4], 0x10];
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        for (at, bytes) in [(FRESH, words(&s.gpr)), (FRAME, words(&frame)), (FX, s.fxsave.clone())] {
            self.memory.write(at, &bytes).expect("RAM");
        }
        self.handled += HANDLER_INSNS;
    }

    /// Runs a slice; devices read as ones.
    fn slice(&mut self, n: u64) -> Slice {
        let end = self.cpu.instructions() + n;
        for _ in 0..1000 {
            match self.cpu.run(end.saturating_sub(self.cpu.instructions())) {
                Stop::PioRead { .. } | Stop::MmioRead { .. } => self.cpu.reply(u64::MAX),
                Stop::PioWrite { port, .. } if port == ENDED.into() && self.cpu.rip() == HANDLER => {
                    return Slice::Ended;
                }
                Stop::PioWrite { .. } | Stop::MmioWrite { .. } | Stop::IoapicEoi { .. } => {}
                Stop::Budget => break,
                stop => return Slice::Stopped(stop),
            }
        }
        Slice::Budget
    }

    fn state(&mut self) -> (VcpuState, u64) {
        (self.cpu.save(), self.cpu.instructions())
    }

    fn pages(&self) -> Vec<[u8; 4096]> {
        let mut out = vec![[0; 4096]; self.memory.page_count()];
        out.iter_mut().enumerate().for_each(|(i, page)| self.memory.read_page(i, page));
        out
    }
}

/// A number of the environment's.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn random_code_does_the_same_interpreted_and_translated() {
    let mut rng = Rng(0x5eed_cafe ^ number("SMOLVM_SEED").unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let long = number("SMOLVM_LONG");
    let (slices, most) = if long.is_some() { (20 * SLICES, 4000) } else { (SLICES, 200) };
    let (mut ran, mut ended) = (0, 0);
    for batch in 0.. {
        if long.map_or(batch * TOGETHER >= PROGRAMS, |long| ran >= long) {
            println!("{} programs, {ran} instructions translated, {ended} ended", batch * TOGETHER);
            break;
        }
        let longest = [1, 5, 64][rng.below(3) as usize];
        let mut one = Machine::new(&[], Engine::Interpreter, CODE, 1);
        let mut two = Machine::new(&[], Engine::Jit { after: 0, longest }, CODE, 1);
        for number in batch * TOGETHER..(batch + 1) * TOGETHER {
            let code = program(&mut rng);
            // Some of them lie over the end of a page.
            let at = CODE + if rng.below(4) == 0 { 0x1000 - rng.below(60) } else { 0 };
            [&mut one, &mut two].into_iter().for_each(|machine| machine.load(&code, at));
            let mut start = Some((at, false));
            for slice in 0..slices {
                if let Some((rip, by_handler)) = start.take() {
                    let seed = rng.draw();
                    let begin = if by_handler { Machine::go_on } else { Machine::start };
                    [&mut one, &mut two].into_iter().for_each(|machine| begin(machine, rip, seed));
                }
                let n = 1 + rng.below(most);
                let stops = (one.slice(n), two.slice(n));
                let what = || format!("program {number}, slice {slice} of {n} at {at:#x}: {code:02x?}");
                let ((a, m), (b, n)) = (one.state(), two.state());
                assert_eq!((a.gpr, a.rip, a.rflags, m), (b.gpr, b.rip, b.rflags, n), "{}", what());
                assert_eq!(stops.0, stops.1, "{}", what());
                assert!(a == b, "{a:?}\n{b:?}\n{}", what());
                ended += u64::from(stops.0 != Slice::Budget);
                if stops.0 != Slice::Budget {
                    let by_handler = stops.0 == Slice::Ended && rng.below(RESTORED) != 0;
                    start = Some((at + rng.below(code.len() as u64), by_handler));
                }
                if !matches!(stops.0, Slice::Budget | Slice::Ended | Slice::Stopped(Stop::Halt)) {
                    // Its tables are no more.
                    [&mut one, &mut two].into_iter().for_each(|machine| machine.load(&code, at));
                }
            }
        }
        ran += two.cpu.jit_counters().instructions.saturating_sub(two.handled);
        assert!(one.pages() == two.pages(), "memory after the programs of batch {batch}");
    }
    assert!(ran > 10_000, "only {ran} instructions ran translated");
}

#[test]
fn a_branch_to_an_address_that_no_code_is_at_faults() {
    for target in [0, 2, 1 << 63, u64::MAX, 1 << 47, (1 << 63) | 2] {
        // mov rax, target; jmp rax
        let mut code = vec![0x48, 0xb8];
        code.extend(u64::to_le_bytes(target));
        code.extend([0xff, 0xe0]);
        let mut one = Machine::new(&code, Engine::Interpreter, CODE, 1);
        let mut two = Machine::new(&code, Engine::Jit { after: 0, longest: 64 }, CODE, 1);
        let stops = (one.slice(100), two.slice(100));
        assert_eq!(stops.0, stops.1, "{target:#x}");
        assert!(one.state() == two.state(), "{target:#x}");
    }
}

/// Found by random code: a translation that ended in STI let interrupts in before the next instruction.
#[test]
fn sti_holds_interrupts_off_for_one_instruction_wherever_a_translation_ends() {
    // nop; sti; X; hlt: X is an instruction with a template, a handler's, and the HLT itself.
    for after in [&[0x90][..], &[0x0f, 0xa2], &[]] {
        let code = [&[0x90, 0xfb], after, &[0xf4]].concat();
        for (longest, at) in [(1, CODE), (2, CODE), (64, CODE), (64, CODE + 0xffe), (64, CODE + 0xfff)] {
            let mut one = Machine::new(&code, Engine::Interpreter, at, 1);
            let mut two = Machine::new(&code, Engine::Jit { after: 0, longest }, at, 1);
            assert_eq!((one.slice(2), two.slice(2)), (Slice::Budget, Slice::Budget));
            assert!(one.state().0.events.sti_shadow);
            assert!(one.state() == two.state(), "{after:02x?} at {at:#x}, {longest} at a time");
            assert_eq!((one.slice(9), two.slice(9)), (HALT, HALT));
            assert!(
                one.state() == two.state() && !one.state().0.events.sti_shadow,
                "{after:02x?} at {at:#x}"
            );
        }
    }
}

/// Found by random code: the shadow stayed until something else let it be looked at, each engine having its own idea of when.
#[test]
fn a_load_of_ss_holds_interrupts_off_for_one_instruction() {
    // mov ax, 0x10; mov ss, ax; nop; nop; jmp +0; hlt
    let code = [0x66, 0xb8, 0x10, 0, 0x8e, 0xd0, 0x90, 0x90, 0xeb, 0, 0xf4];
    for longest in [1, 2, 64] {
        for done in 1..=5 {
            let mut one = Machine::new(&code, Engine::Interpreter, CODE, 1);
            let mut two = Machine::new(&code, Engine::Jit { after: 0, longest }, CODE, 1);
            assert_eq!((one.slice(done), two.slice(done)), (Slice::Budget, Slice::Budget));
            let (one, two) = (one.state(), two.state());
            assert_eq!(one.0.events.movss_shadow, done == 2, "{done} interpreted");
            assert!(one == two, "{done} translated, {longest} at a time");
        }
    }
}

/// Found by random code: the instruction behind STI left its translation, and with it the shadow was gone.
#[test]
fn sti_holds_interrupts_off_where_the_instruction_after_it_faults() {
    // sti; pop rbx; hlt, on a stack that is not there: nothing can be delivered, and STI was the last that was done.
    let code = [0xfb, 0x5b, 0xf4];
    let machine = |engine| {
        let mut machine = Machine::new(&code, engine, CODE, 1);
        machine.fresh.gpr[4] = 1 << 43;
        machine.cpu.restore(&machine.fresh).expect("a possible state");
        assert_eq!(machine.slice(9), Slice::Stopped(Stop::TripleFault));
        machine.state()
    };
    let one = machine(Engine::Interpreter);
    assert!(one.0.events.sti_shadow);
    for longest in [1, 2, 64] {
        assert!(machine(Engine::Jit { after: 0, longest }) == one, "{longest} at a time");
    }
}

/// Padding that hand-written assembly uses: prefixes that mean nothing for registers.
#[test]
fn prefixes_without_a_meaning_change_nothing() {
    for prefixes in [&[0x67][..], &[0x67, 0x67], &[0x2e, 0x67], &[0x3e], &[0x64, 0x67], &[0x26]] {
        // Each behind as many of them: movdqa xmm4, xmm6; paddd xmm2, xmm1; movq rax, xmm4; fld1; faddp; inc rax
        let plain: [&[u8]; 6] = [
            &[0x66, 0x0f, 0x6f, 0xe6],
            &[0x66, 0x0f, 0xfe, 0xd1],
            &[0x66, 0x48, 0x0f, 0x7e, 0xe0],
            &[0xd9, 0xe8],
            &[0xde, 0xc1],
            &[0x48, 0xff, 0xc0],
        ];
        let mut code: Vec<u8> = plain.iter().flat_map(|insn| [prefixes, insn].concat()).collect();
        code.push(0xf4);
        let mut one = Machine::new(&code, Engine::Interpreter, CODE, 1);
        let mut two = Machine::new(&code, Engine::Jit { after: 0, longest: 64 }, CODE, 1);
        assert_eq!((one.slice(100), two.slice(100)), (HALT, HALT), "{prefixes:02x?}");
        assert!(one.state() == two.state(), "{prefixes:02x?}");
    }
}
