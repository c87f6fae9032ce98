//! [`Cpu`]: one virtual processor, and the types that its parts speak.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arch::x86_64::cpuid::CpuidLeaf;
use arch::x86_64::regs::{Cr0, Efer, seg};
use arch::x86_64::state::{Events, MpState, Msrs, Segment, TableReg};
use guestmem::GuestMemory;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::block::CodeCache;
use crate::clock::Clock;
use crate::flags::Flags;
use crate::fpu::{FpInsn, Fpu};
use crate::hot::Foresight;
use crate::io_log::IoLog;
use crate::jit::{Engine, JitCounters, JitState, JumpEntry, Jumps, X87Image};
use crate::lapic::{ApicBus, Lapic};
use crate::mmu::{Mmu, MmuCounters};
use crate::op::REG_START;

/// Why [`Cpu::run`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// IN or INS; `size` is 1, 2 or 4 bytes. Answer with [`Cpu::reply`].
    PioRead { port: u16, size: u8 },
    /// OUT or OUTS.
    PioWrite { port: u16, size: u8, value: u32 },
    /// A load from a guest-physical address that is not RAM; 1, 2, 4 or 8 bytes. Answer with
    /// [`Cpu::reply`].
    MmioRead { gpa: u64, size: u8 },
    /// A store to a guest-physical address that is not RAM.
    MmioWrite { gpa: u64, size: u8, value: u64 },
    /// The guest ended a level-triggered interrupt.
    IoapicEoi { vector: u8 },
    /// HLT (or waiting for INIT or SIPI): nothing to do before an event.
    Halt,
    /// The instruction budget is used up, or the guest waits in a loop (PAUSE) for another vCPU.
    Budget,
    /// The poll flag was set by somebody outside.
    Poll,
    /// A locked access on two pages, which no host instruction makes: call [`Cpu::run_alone`] while no other vCPU
    /// executes.
    Alone,
    /// The guest cannot go on.
    TripleFault,
    /// Something that this CPU cannot execute; the text is for the user.
    Unsupported(String),
}

/// Why an instruction did not complete. It has changed no architectural state then (CR2 and DR6
/// excepted), or, for string instructions, is at an element boundary. ([`Trap::Taken`] excepted.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// Deliver this; CR2 is set already.
    Exception { vector: u8, error: Option<u16> },
    /// An access needs the outside: the request is in [`Cpu::io`].
    Io,
    /// Stop with the text in [`Cpu::failure`].
    Unsupported,
    /// Only while no other vCPU executes.
    Alone,
    /// A string instruction pauses between elements so that events are seen; it is not retired and
    /// its registers are at an element boundary.
    Pause,
    /// Not a trap: a conditional branch was taken; `rip` is its target and the op has retired.
    Taken,
}

impl Trap {
    pub(crate) const fn fault(vector: u8) -> Self {
        Trap::Exception { vector, error: None }
    }
    /// #UD.
    pub(crate) const UD: Trap = Trap::fault(6);
    /// #NM.
    pub(crate) const NM: Trap = Trap::fault(7);
    /// #DE.
    pub(crate) const DE: Trap = Trap::fault(0);
    /// #GP with an error code (0 or a selector).
    pub(crate) const fn gp(error: u16) -> Self {
        Trap::Exception { vector: 13, error: Some(error) }
    }
    /// #SS with an error code.
    pub(crate) const fn ss(error: u16) -> Self {
        Trap::Exception { vector: 12, error: Some(error) }
    }
}

/// How instructions are decoded and addresses formed (SDM vol. 1, 3.1 and 3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    #[default]
    Real16 = 0,
    Prot16 = 1,
    Prot32 = 2,
    Compat16 = 3,
    Compat32 = 4,
    Long64 = 5,
}

impl Mode {
    /// Default code size in bits.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Mode::Real16 | Mode::Prot16 | Mode::Compat16 => 16,
            Mode::Prot32 | Mode::Compat32 => 32,
            Mode::Long64 => 64,
        }
    }
}

/// Set by anybody who wants a vCPU's attention; looked at between blocks.
#[derive(Debug, Default)]
pub struct PollFlag(AtomicU32);

/// Bits of the poll flag.
impl PollFlag {
    /// The LAPIC mailbox has something.
    pub(crate) const APIC: u32 = 1;
    /// Leave `run` with [`Stop::Poll`].
    pub(crate) const KICK: u32 = 2;
    /// A peer waits for the write epoch to be looked at, which leaving the running block does.
    pub(crate) const SYNC: u32 = 4;

    /// Makes `run` return [`Stop::Poll`] at the next block boundary (or at once when it starts).
    pub fn kick(&self) {
        self.raise(Self::KICK);
    }

    pub(crate) fn raise(&self, bits: u32) {
        self.0.fetch_or(bits, Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Takes all bits.
    pub(crate) fn take(&self) -> u32 {
        self.0.swap(0, Ordering::AcqRel)
    }
}

/// What a vCPU did since it was made. All of it is counted off the usual path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCounters {
    /// Instructions that retired.
    pub instructions: u64,
    pub translated: JitCounters,
    pub paging: MmuCounters,
    /// Blocks decoded for the interpreter, and their instructions.
    pub decoded: (u64, u64),
    /// Times that all decoded code was dropped.
    pub drops: u64,
}

/// What a new vCPU needs.
#[derive(Clone)]
pub struct CpuConfig {
    pub memory: GuestMemory,
    /// APIC id; 0 is the boot processor.
    pub id: u32,
    /// CPUID answers, APIC ids of this vCPU filled in.
    pub cpuid: Arc<[CpuidLeaf]>,
    pub clock: Arc<Clock>,
    pub apic_bus: Arc<ApicBus>,
}

/// One virtual processor. Owned by one thread at a time.
#[repr(C)]
pub struct Cpu {
    /// Translated code's own; see there about its place.
    pub(crate) jx: JitState,
    /// 0..16: the registers in encoding order; see [`crate::op`] for 16 and 17.
    pub(crate) gpr: [u64; 32],
    pub(crate) flags: Flags,
    /// Address of the next instruction. Stale while a block runs; handlers of instructions that end
    /// a block find the address of the following instruction here.
    pub(crate) rip: u64,
    /// Leave the running block after the current instruction (its code was overwritten, or an event
    /// wants to be seen).
    pub(crate) leave: bool,
    /// Look for events at the next block boundary (IF, TPR, pending interrupts may have changed).
    pub(crate) attention: bool,
    pub(crate) mode: Mode,
    pub(crate) cpl: u8,
    /// Encoding order; 6 and 7 are flat pseudo segments that never change.
    pub(crate) seg: [Segment; 8],
    pub(crate) mmu: Mmu,
    pub(crate) memory: GuestMemory,
    pub(crate) poll: Arc<PollFlag>,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    /// DR0-DR3, DR6, DR7.
    pub(crate) dr: [u64; 6],
    pub(crate) tr: Segment,
    pub(crate) ldtr: Segment,
    pub(crate) gdtr: TableReg,
    pub(crate) idtr: TableReg,
    pub(crate) msrs: Msrs,
    pub(crate) events: Events,
    pub(crate) mp_state: MpState,
    pub(crate) io: IoLog,
    /// PAUSEs since the last time that others were let run.
    pub(crate) pauses: u32,
    /// There are other vCPUs.
    pub(crate) has_peers: bool,
    /// None of them executes.
    pub(crate) alone: bool,
    /// A stop that is returned at the next block boundary (EOI to the IOAPIC).
    pub(crate) outbox: Option<Stop>,
    /// Text of the last `Trap::Unsupported`.
    pub(crate) failure: Option<String>,
    pub(crate) fpu: Fpu,
    /// The x87 registers on their way from and to the host's.
    pub(crate) x87_image: X87Image,
    pub(crate) lapic: Lapic,
    pub(crate) clock: Arc<Clock>,
    pub(crate) cpuid: Arc<[CpuidLeaf]>,
    pub(crate) id: u32,
    /// Where random numbers come from when a run is to be repeatable.
    pub(crate) seeded: Option<Box<StdRng>>,
    /// Instructions retired.
    pub(crate) insn_count: u64,
    /// Long sleeps so far.
    pub(crate) rests: u32,
    /// Decoded floating-point operations, by index from `Op::imm`; emptied with the code cache.
    pub(crate) fp_ops: Vec<FpInsn>,
    /// Made by the first `run`, or handed over by another vCPU before it.
    pub(crate) code: Option<Box<CodeCache>>,
    /// What will run often.
    pub(crate) foresight: Option<Foresight>,
    /// How many of the hottest were translated before they ran.
    pub(crate) ahead: usize,
    /// Where indirect branches of translated code lead.
    pub(crate) jumps: Jumps,
    /// The last one that led where nothing is translated: its way out.
    pub(crate) jump_miss: JumpEntry,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu {{ id: {}, rip: {:#x}, mode: {:?}, cpl: {} }}", self.id, self.rip, self.mode, self.cpl)
    }
}

impl Cpu {
    /// [`Cpu::new`] where it stays: it is large, and each copy on the way would take new pages of the stack.
    #[inline(never)]
    pub fn boxed(config: CpuConfig) -> Box<Self> {
        let mut cpu = Box::write(Box::new_uninit(), Self::blank(config));
        cpu.reset();
        cpu
    }

    /// A vCPU in its reset state (SDM vol. 3, 10.1.1): the boot processor runs, others wait for INIT.
    pub fn new(config: CpuConfig) -> Self {
        let mut cpu = Self::blank(config);
        cpu.reset();
        cpu
    }

    #[inline(always)]
    fn blank(config: CpuConfig) -> Self {
        let poll = Arc::new(PollFlag::default());
        let peers = config.apic_bus.peers();
        if let Some(peers) = &peers {
            peers.attach(config.id, &poll);
        }
        let has_peers = peers.is_some();
        let lapic = Lapic::new(config.id, Arc::clone(&config.apic_bus), Arc::clone(&poll));
        Self {
            jx: JitState::default(),
            gpr: [0; 32],
            flags: Flags::default(),
            rip: 0,
            leave: false,
            attention: true,
            mode: Mode::Real16,
            cpl: 0,
            seg: [Segment::default(); 8],
            mmu: Mmu::new(&config.memory, config.id, peers),
            memory: config.memory,
            poll,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0; 6],
            tr: Segment::default(),
            ldtr: Segment::default(),
            gdtr: TableReg::default(),
            idtr: TableReg::default(),
            msrs: Msrs::default(),
            events: Events::default(),
            mp_state: if config.id == 0 { MpState::Runnable } else { MpState::Uninitialized },
            io: IoLog::default(),
            pauses: 0,
            has_peers,
            alone: false,
            outbox: None,
            failure: None,
            fpu: Fpu::default(),
            x87_image: X87Image::default(),
            lapic,
            seeded: config
                .clock
                .is_repeatable()
                .then(|| Box::new(StdRng::seed_from_u64(u64::from(config.id)))),
            clock: config.clock,
            cpuid: config.cpuid,
            id: config.id,
            insn_count: 0,
            rests: 0,
            fp_ops: Vec::new(),
            code: None,
            foresight: None,
            ahead: 0,
            jumps: Jumps::default(),
            jump_miss: JumpEntry::default(),
        }
    }

    /// Instructions retired since the vCPU was made.
    pub fn instructions(&self) -> u64 {
        self.insn_count
    }

    /// Where it stands: the next instruction's address.
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// Chooses how it executes.
    pub fn set_engine(&mut self, engine: Engine) {
        self.code.get_or_insert_default().jit.set_engine(engine);
        self.forget_code();
    }

    /// What translated code did so far.
    pub fn jit_counters(&self) -> JitCounters {
        self.code.as_ref().map_or_else(JitCounters::default, |code| code.jit.counters())
    }

    /// What it did so far.
    pub fn counters(&self) -> CpuCounters {
        let code = self.code.as_ref();
        CpuCounters {
            instructions: self.insn_count,
            translated: self.jit_counters(),
            paging: self.mmu.counters,
            decoded: code.map_or((0, 0), |code| code.decoded),
            drops: code.map_or(0, |code| code.flushes),
        }
    }

    /// The flag that interrupts [`Cpu::run`].
    pub fn poll_handle(&self) -> Arc<PollFlag> {
        Arc::clone(&self.poll)
    }

    /// Answers a [`Stop::PioRead`] or [`Stop::MmioRead`]; only the access's bytes of `value` count.
    pub fn reply(&mut self, value: u64) {
        self.io.answer(value);
    }

    /// RFLAGS, all of it.
    #[inline]
    pub(crate) fn rflags(&self) -> u64 {
        self.flags.all()
    }

    /// Loads RFLAGS; the caller has decided which bits may change. Events are looked for again.
    pub(crate) fn set_rflags(&mut self, image: u64) {
        self.flags.set_all(image);
        self.attention = true;
    }

    /// Says that the current instruction cannot be executed and why.
    pub(crate) fn unsupported(&mut self, what: impl Into<String>) -> Trap {
        self.failure = Some(what.into());
        Trap::Unsupported
    }

    /// Works out [`Cpu::mode`] and [`Cpu::cpl`] again; after every change of CR0.PE, EFER.LMA, CS
    /// or SS. CPL is SS's DPL (SDM vol. 3, 5.5), which is also right in real mode (0).
    pub(crate) fn update_mode(&mut self) {
        const L: u32 = 1 << 13;
        const DB: u32 = 1 << 14;
        let cs = self.seg[seg::CS];
        let big = cs.attr & DB != 0;
        self.mode = if self.cr0 & Cr0::PE.bits() == 0 {
            Mode::Real16
        } else if self.msrs.efer & Efer::LMA.bits() != 0 {
            match (cs.attr & L != 0, big) {
                (true, _) => Mode::Long64,
                (false, true) => Mode::Compat32,
                (false, false) => Mode::Compat16,
            }
        } else if big {
            Mode::Prot32
        } else {
            Mode::Prot16
        };
        self.cpl = if self.mode == Mode::Real16 { 0 } else { ((self.seg[seg::SS].attr >> 5) & 3) as u8 };
        self.mmu.mode_changed(self.cpl, self.cr0, self.cr4, self.msrs.efer);
        self.attention = true;
    }

    /// Whether 64-bit mode executes.
    #[inline(always)]
    pub(crate) fn is_long(&self) -> bool {
        self.mode == Mode::Long64
    }

    /// Mask of the stack pointer's width (SDM vol. 1, 6.2.3).
    #[inline]
    pub(crate) fn stack_mask(&self) -> u64 {
        const DB: u32 = 1 << 14;
        if self.is_long() {
            u64::MAX
        } else if self.seg[seg::SS].attr & DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// Address of the first byte of the running block.
    #[inline(always)]
    pub(crate) fn block_start(&self) -> u64 {
        self.gpr[REG_START as usize]
    }
}
