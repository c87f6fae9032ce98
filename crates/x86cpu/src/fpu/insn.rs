//! The decoded form of one instruction, and what the rest of the CPU must lend it.

use super::state::Fpu;

/// Memory as seen by one instruction: linear addresses after segmentation.
pub trait FpBus {
    type Fault;
    fn load(&mut self, ea: u64, buf: &mut [u8]) -> Result<(), Self::Fault>;
    fn store(&mut self, ea: u64, bytes: &[u8]) -> Result<(), Self::Fault>;
    /// Would a store of `len` bytes succeed?
    fn check_write(&mut self, ea: u64, len: usize) -> Result<(), Self::Fault>;
}

/// The registers an instruction may touch.
pub struct FpContext<'a> {
    pub fpu: &'a mut Fpu,
    pub gpr: &'a mut [u64; 16],
    /// Only valid, and only written, where [`FpInsn::flags_use`] says so.
    pub rflags: &'a mut u64,
    /// Address of the instruction, for the x87 instruction pointer.
    pub rip: u64,
}

/// Why an instruction did not complete. No register has changed, save the exception flags of MXCSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpFault<F> {
    /// The bus's own fault.
    Mem(F),
    /// #XM (or #UD while CR4.OSXMMEXCPT is clear).
    Simd,
    /// #MF: an earlier x87 instruction left an unmasked exception.
    X87,
    /// #GP(0): misaligned operand or reserved MXCSR bits.
    Gp,
    /// #UD.
    Ud,
}

/// Which enable bits guard the instruction (SDM vol. 3, table 14-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// CR0.EM or TS: #NM.
    X87,
    /// FWAIT: CR0.MP and TS together: #NM.
    Wait,
    /// CR0.EM: #UD, TS: #NM.
    Mmx,
    /// CR0.EM or no CR4.OSFXSR: #UD, TS: #NM.
    Sse,
    /// FXSAVE and FXRSTOR: CR0.EM or TS: #NM.
    Fxsr,
}

/// What an instruction does with RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagsUse {
    None,
    /// FCMOVcc.
    Reads,
    /// Sets all six arithmetic flags (COMIS*, PTEST, FCOMI, PCMP*STR*).
    Writes,
}

/// What an instruction asks of memory, for callers with a shorter way than [`FpBus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Registers only, through [`super::execute_value`].
    Registers,
    /// One load of that many bytes (at most 16) first; its value goes to [`super::execute_value`].
    Load(u8),
    /// One store of that many bytes of what [`super::execute_value`] returns.
    Store(u8),
    /// Whatever needs [`super::execute`].
    Other,
}

/// Moves that are worth a way of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// XMM register to XMM register, 128 bits.
    Copy { to: u8, from: u8 },
    /// Memory to XMM register, zero-extended, by [`Shape::Load`]'s size.
    Load { to: u8 },
    /// Low bytes of an XMM register to memory, by [`Shape::Store`]'s size.
    Store { from: u8 },
}

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loc {
    None,
    Xmm(u8),
    Mmx(u8),
    G32(u8),
    G64(u8),
    /// That many bytes at the effective address.
    Mem(u8),
    /// The immediate byte.
    Imm,
    /// The arithmetic flags.
    Flags,
}

/// A vector register: byte 0 is bits 7:0.
pub type V = [u8; 16];

/// `(context, a, b, imm) -> d`. Values narrower than 128 bits come zero-extended, and what the
/// destination does not hold is ignored.
pub(super) type Value = fn(&mut FpContext<'_>, u128, u128, u8) -> u128;

/// The same for what works on lanes alone.
pub(super) type Lanes = fn(&V, &V, u8) -> V;

/// What an instruction does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kernel {
    Value(Value),
    Lanes(Lanes),
}

impl Kernel {
    #[inline(always)]
    pub fn run(self, c: &mut FpContext<'_>, a: u128, b: u128, imm: u8) -> u128 {
        match self {
            Kernel::Value(f) => f(c, a, b, imm),
            Kernel::Lanes(f) => u128::from_le_bytes(f(&a.to_le_bytes(), &b.to_le_bytes(), imm)),
        }
    }

    fn is(self, f: Value) -> bool {
        matches!(self, Kernel::Value(k) if std::ptr::fn_addr_eq(k, f))
    }
}

/// How `execute` treats an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// d = kernel(a, b, imm).
    Plain,
    /// An x87 instruction: `imm` is i of ST(i); the kernel works on the stack, memory source in b.
    X87,
    /// The same without the check for a pending #MF first.
    X87NoWait,
    Maskmov,
    Ldmxcsr,
    Fxsave,
    Fxrstor,
    Fnstenv,
    Fldenv,
    Fnsave,
    Frstor,
}

/// One decoded x87, MMX or SSE instruction.
#[derive(Clone, Copy, Debug)]
pub struct FpInsn {
    pub(super) kernel: Kernel,
    pub(super) form: Form,
    pub(super) class: Class,
    pub(super) d: Loc,
    pub(super) a: Loc,
    pub(super) b: Loc,
    pub(super) imm: u8,
    /// The memory operand must be 16-byte aligned.
    pub(super) aligned: bool,
    /// Uses the MMX registers: pending #MF first, then the transition of SDM vol. 1, 9.5.
    pub(super) mmx: bool,
    pub(super) flags: FlagsUse,
    /// Fxsave forms: wide | 64-bit mode << 1. Environments: their bytes (14 or 28).
    pub(super) extra: u16,
}

impl FpInsn {
    /// Which enable bits core has to check before [`super::execute`].
    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether `FpContext::rflags` has to be materialised before or taken over after.
    pub fn flags_use(&self) -> FlagsUse {
        self.flags
    }

    /// The memory operand must be 16-byte aligned, else #GP(0).
    pub fn needs_alignment(&self) -> bool {
        self.aligned
    }

    /// Whether its memory operand is written.
    pub fn stores(&self) -> bool {
        matches!(self.d, Loc::Mem(_))
            || matches!(self.form, Form::Fxsave | Form::Fnstenv | Form::Fnsave | Form::Maskmov)
    }

    /// What it asks of memory.
    pub fn shape(&self) -> Shape {
        match (self.form, self.mmx, self.d, self.b) {
            (Form::Plain, false, Loc::Mem(n), _) if n <= 16 => Shape::Store(n),
            (Form::Plain, false, _, Loc::Mem(n)) if n <= 16 => Shape::Load(n),
            (Form::Plain, false, _, _) => Shape::Registers,
            _ => Shape::Other,
        }
    }

    /// Registers (to, from) of an operation that combines two XMM registers, or one and a loaded
    /// value, into the first: the way of [`super::execute_binary`].
    pub fn as_binary(&self) -> Option<(u8, u8)> {
        if self.flags != FlagsUse::None {
            return None;
        }
        match (self.form, self.mmx, self.d, self.a, self.b) {
            (Form::Plain, false, Loc::Xmm(to), Loc::Xmm(a), Loc::Xmm(from)) if a == to => Some((to, from)),
            (Form::Plain, false, Loc::Xmm(to), Loc::Xmm(a), Loc::Mem(_)) if a == to => Some((to, 0)),
            _ => None,
        }
    }

    /// Whether it is one of the plain moves.
    pub fn as_move(&self) -> Option<Move> {
        let whole = self.kernel.is(super::simd::moves::mov);
        // Stores of a low half take the bytes they need all the same.
        let low = self.kernel.is(super::simd::moves::low64);
        match (self.form, self.d, self.b) {
            (Form::Plain, Loc::Xmm(to), Loc::Xmm(from)) if whole => Some(Move::Copy { to, from }),
            (Form::Plain, Loc::Xmm(to), Loc::Mem(_)) if whole || low => Some(Move::Load { to }),
            (Form::Plain, Loc::Mem(_), Loc::Xmm(from)) if whole || low => Some(Move::Store { from }),
            _ => None,
        }
    }
}
