//! x87: the guest's instruction itself, on the host's registers.
//!
//! The whole x87 state of the guest (stack, FCW, FSW) is in the host's while `JitState::x87` says so: it is
//! brought there before the first instruction that has a template, stays over look-ups and from one
//! translation to the next, and goes home before anything else looks at `Cpu::fpu` (a handler, the
//! dispatcher). Rust code that runs meanwhile uses no x87 registers. Only while every exception is masked:
//! then nothing here raises one. What the interpreter computes by a method of its own (sines, logarithms,
//! partial remainders, packed decimals) and whatever loads or stores the whole environment is its handlers'.

use iced_x86::{Instruction, Mnemonic as M};

use super::super::emit::{Emit, Rm, cc};
use super::super::plan::{bit, has_memory};
use super::super::regs::{self, T1, TMP, field};
use super::super::scan::Item;
use super::super::state::x87;
use super::{Gen, leave};
use crate::fpu::{self, Class};
use crate::ops::alu::NOT;

/// FCW bits that mask exceptions.
const MASKS: i32 = 0x3f;

/// Whether the instruction means the same on the host.
pub(in super::super) fn is_plain(insn: &Instruction) -> bool {
    let m = insn.mnemonic();
    let known = moves(m) || computes(m) || compares(m) || writes_flags(m) || condition(m).is_some();
    known && fpu::decode(insn).is_some_and(|f| matches!(f.class(), Class::X87 | Class::Wait))
}

fn moves(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Fld | Fst | Fstp | Fild | Fist | Fistp | Fisttp | Fxch | Fnop | Wait | Fnstsw | Fnstcw | Fldcw
    ) || matches!(m, Fld1 | Fldz | Fldpi | Fldl2e | Fldl2t | Fldlg2 | Fldln2)
}

fn computes(m: M) -> bool {
    use M::*;
    matches!(m, Fadd | Faddp | Fiadd | Fsub | Fsubp | Fisub | Fsubr | Fsubrp | Fisubr | Fmul | Fmulp | Fimul)
        || matches!(m, Fdiv | Fdivp | Fidiv | Fdivr | Fdivrp | Fidivr | Fsqrt | Fabs | Fchs | Frndint)
}

fn compares(m: M) -> bool {
    use M::*;
    matches!(m, Fcom | Fcomp | Fcompp | Fucom | Fucomp | Fucompp | Ficom | Ficomp | Ftst | Fxam)
}

/// Instructions that set all arithmetic flags.
pub(in super::super) fn writes_flags(m: M) -> bool {
    matches!(m, M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip)
}

/// The condition of FCMOVcc.
pub(in super::super) fn condition(m: M) -> Option<u8> {
    Some(match m {
        M::Fcmovb => 2,
        M::Fcmovnb => 3,
        M::Fcmove => 4,
        M::Fcmovne => 5,
        M::Fcmovbe => 6,
        M::Fcmovnbe => 7,
        M::Fcmovu => 10,
        M::Fcmovnu => 11,
        _ => return None,
    })
}

/// Opcode and ModRM behind the prefixes, which mean nothing here.
fn encoding(bytes: &[u8; 15]) -> Option<(u8, u8)> {
    let at = bytes.iter().position(|b| matches!(b, 0xd8..=0xdf))?;
    Some((bytes[at], *bytes.get(at + 1)?))
}

impl<E: Emit> Gen<E> {
    pub(super) fn x87(&mut self, item: &Item) {
        let insn = &item.insn;
        self.need_x87();
        if insn.mnemonic() == M::Wait {
            return;
        }
        let Some((opcode, modrm)) = encoding(&item.bytes) else { return self.step_always() };
        if let Some(cc) = condition(insn.mnemonic()) {
            self.want_flags(cc);
        }
        if !has_memory(insn) {
            self.a.x87(opcode, modrm);
        } else if insn.mnemonic() == M::Fldcw {
            self.load_control(insn);
        } else {
            let write = fpu::decode(insn).is_some_and(|f| f.stores());
            let m = self.memory(insn, insn.memory_size().size() as u8, write);
            self.a.x87_memory(opcode, modrm >> 3 & 7, m);
        }
        if writes_flags(insn.mnemonic()) {
            self.host = bit::ALL;
            if item.need {
                self.save_image();
            }
        }
    }

    /// FLDCW; one that unmasks an exception is the interpreter's.
    fn load_control(&mut self, insn: &Instruction) {
        let m = self.memory(insn, 2, false);
        self.a.load(2, T1, m);
        self.a.store(2, T1, field(TMP));
        self.a.unary(4, NOT, Rm::Reg(T1));
        self.a.test_imm(4, Rm::Reg(T1), MASKS);
        self.step_if(cc::NE);
        self.a.x87_memory(0xd9, 5, field(TMP));
    }

    /// The guest's x87 state is in the host's registers from here on, up to the next handler.
    fn need_x87(&mut self) {
        self.host = bit::NONE;
        if std::mem::replace(&mut self.x87_live, true) {
            return;
        }
        self.a.alu_imm(1, 7, field(regs::X87), i32::from(x87::LIVE));
        let ready = self.a.jcc(cc::E);
        let site = self.new_site(0, false) + self.place.first_site;
        self.a.mov_imm(T1, u64::from(site << leave::BITS | leave::INTERPRET));
        let call = self.a.call();
        self.lead_to(call, self.place.thunks.x87_load);
        self.a.bind(ready);
    }
}
