//! The machine of these tests: 16 MiB, identity-mapped; flat segments, an IDT of which every handler
//! halts, so that where it halts says what was delivered.

use std::sync::Arc;

use arch::x86_64::cpuid::{CpuidLeaf, for_vcpu, portable};
use arch::x86_64::regs::seg;
use arch::x86_64::state::{MpState, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

pub const PML4: u64 = 0x1000;
pub const PD: u64 = 0x3000;
/// Page table of the first 2 MiB.
pub const PT: u64 = 0x4000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
pub const TSS: u64 = 0x7000;
/// Handler of vector v: HLT at HANDLERS + 16 v.
pub const HANDLERS: u64 = 0x8000;
/// Real-mode start-up code.
pub const TRAMPOLINE: u64 = 0x9000;
pub const STACK: u64 = 0xa000;
pub const IST1: u64 = 0xb000;
pub const CODE: u64 = 0x1_0000;
pub const DATA: u64 = 0x2_0000;
/// Pages from here to 0x110000 are the user's.
pub const USER_CODE: u64 = 0x10_0000;
pub const USER_STACK: u64 = 0x10_8000;

pub const KERNEL_CS: u16 = 0x08;
pub const KERNEL_DS: u16 = 0x10;
pub const USER_CS32: u16 = 0x23;
pub const USER_DS: u16 = 0x2b;
pub const USER_CS: u16 = 0x33;
const TR: u16 = 0x38;
pub const TSC_KHZ: u32 = 1_000_000;

pub struct Machine {
    pub memory: GuestMemory,
    pub clock: Arc<Clock>,
    pub bus: Arc<ApicBus>,
    pub cpuid: Vec<CpuidLeaf>,
}

impl Machine {
    pub fn new(vcpus: u32) -> Self {
        let memory = GuestMemory::new(16 << 20).unwrap();
        let machine = Self {
            memory,
            clock: Arc::new(Clock::new(TSC_KHZ)),
            bus: Arc::new(ApicBus::new(vcpus)),
            cpuid: portable(vcpus, TSC_KHZ),
        };
        machine.lay_tables();
        machine
    }

    fn lay_tables(&self) {
        let put = |at: u64, v: u64| self.put(at, v);
        put(PML4, 0x2000 | 7);
        put(0x2000, PD | 7);
        put(PD, PT | 7);
        for i in 1..512u64 {
            put(PD + 8 * i, (i << 21) | 0x83);
        }
        for page in 0..512u64 {
            let user = if (0x100..0x110).contains(&page) { 4 } else { 0 };
            put(PT + 8 * page, (page << 12) | 3 | user);
        }
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_8900_0000_0067 | (TSS << 16),
            0,
        ];
        for (i, word) in gdt.into_iter().enumerate() {
            put(GDT + 8 * i as u64, word);
        }
        for vector in 0..256 {
            self.gate(vector, 0x8e, 0);
            self.code(HANDLERS + 16 * vector, &[0xf4, 0xeb, 0xfd]);
        }
        put(TSS + 4, STACK);
        put(TSS + 0x24, IST1);
    }

    /// Sets a gate of the IDT: type and DPL byte, IST.
    pub fn gate(&self, vector: u64, kind: u64, ist: u64) {
        let target = HANDLERS + 16 * vector;
        let low = (target & 0xffff) | u64::from(KERNEL_CS) << 16 | ist << 32 | kind << 40;
        self.put(IDT + 16 * vector, low | (target >> 16) << 48);
        self.put(IDT + 16 * vector + 8, 0);
    }

    pub fn put(&self, at: u64, value: u64) {
        self.memory.write_le(at, value).unwrap();
    }

    pub fn get(&self, at: u64) -> u64 {
        self.memory.read_le(at).unwrap()
    }

    pub fn code(&self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).unwrap();
    }

    /// Address of the page-table entry of a page below 2 MiB.
    pub fn pte(&self, lin: u64) -> u64 {
        PT + 8 * (lin >> 12)
    }

    pub fn cpu(&self, id: u32) -> Cpu {
        let mut cpu = Cpu::new(CpuConfig {
            memory: self.memory.clone(),
            id,
            cpuid: for_vcpu(&self.cpuid, id).into(),
            clock: Arc::clone(&self.clock),
            apic_bus: Arc::clone(&self.bus),
        });
        let translated = env!("CARGO_CRATE_NAME") == "system_translated";
        cpu.set_engine(if translated { Engine::Jit { after: 0, longest: 64 } } else { Engine::Interpreter });
        cpu
    }

    /// A state in 64-bit kernel mode at [`CODE`].
    pub fn state(&self, cpu: &mut Cpu) -> VcpuState {
        let mut state = cpu.save();
        let flat = |selector: u16, attr: u32| Segment { selector, base: 0, limit: u32::MAX, attr };
        state.seg = [flat(KERNEL_DS, 0xc093); 6];
        state.seg[seg::CS] = flat(KERNEL_CS, 0xa09b);
        state.tr = Segment { selector: TR, base: TSS, limit: 0x67, attr: 0x8b };
        state.gdtr = TableReg { base: GDT, limit: 9 * 8 - 1 };
        state.idtr = TableReg { base: IDT, limit: 0xfff };
        state.cr0 = 0x8001_0033;
        state.cr3 = PML4;
        state.cr4 = 0x6a0;
        state.msrs.efer = 0xd01;
        state.msrs.star = (0x20 << 48) | (0x08 << 32);
        state.rip = CODE;
        state.rflags = 2;
        state.gpr = [0; 16];
        state.gpr[4] = STACK;
        state.mp_state = MpState::Runnable;
        state
    }

    /// The same in user mode at [`USER_CODE`].
    pub fn user_state(&self, cpu: &mut Cpu) -> VcpuState {
        let mut state = self.state(cpu);
        let flat = |selector: u16, attr: u32| Segment { selector, base: 0, limit: u32::MAX, attr };
        state.seg = [flat(USER_DS, 0xc0f3); 6];
        state.seg[seg::CS] = flat(USER_CS, 0xa0fb);
        state.rip = USER_CODE;
        state.gpr[4] = USER_STACK;
        state
    }
}

/// A single vCPU with `code` where it starts.
pub struct Run {
    pub machine: Machine,
    pub cpu: Cpu,
    pub state: VcpuState,
}

impl Run {
    pub fn kernel(code: &[u8]) -> Self {
        let machine = Machine::new(1);
        let mut cpu = machine.cpu(0);
        machine.code(CODE, code);
        let state = machine.state(&mut cpu);
        Self { machine, cpu, state }
    }

    pub fn user(code: &[u8]) -> Self {
        let machine = Machine::new(1);
        let mut cpu = machine.cpu(0);
        machine.code(USER_CODE, code);
        let state = machine.user_state(&mut cpu);
        Self { machine, cpu, state }
    }

    /// Runs from `state` to the first stop; `state` is then the one after it.
    pub fn go(&mut self) -> Stop {
        self.cpu.restore(&self.state).unwrap();
        self.on()
    }

    /// Goes on to the next stop.
    pub fn on(&mut self) -> Stop {
        let stop = self.cpu.run(100_000);
        self.state = self.cpu.save();
        stop
    }

    /// The vector whose handler halted.
    pub fn vector(&self) -> Option<u64> {
        let at = self.state.rip.checked_sub(HANDLERS + 1)?;
        (at % 16 == 0 && at / 16 < 256).then_some(at / 16)
    }

    /// Item `i` of the stack at RSP.
    pub fn stack(&self, i: u64) -> u64 {
        self.machine.get(self.state.gpr[4] + 8 * i)
    }
}
