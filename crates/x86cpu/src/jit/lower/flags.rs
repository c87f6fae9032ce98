//! Flags of the guest: described, written down, and brought back into the host's.

use super::super::cc::{Desc, Loc, op, over};
use super::super::emit::{Emit, Rm, cc};
use super::super::plan::{bit, looks_at};
use super::super::regs::{self, RAX, T0, T1, field, home, pinned};
use super::{Gen, Stub};
use crate::ops::alu::{ADD, CMP, DEC, INC, NEG, SUB};
use crate::ops::shifts;

/// Operand size in bytes as the low bits of an operation.
pub(super) fn log2(size: u8) -> u8 {
    size.trailing_zeros() as u8 & 3
}

impl<E: Emit> Gen<E> {
    /// Stores a register or constant that a description names into its slot. Flags stay.
    fn store_loc(&mut self, loc: Loc, slot: i32) {
        match loc {
            Loc::Slot => {}
            Loc::Imm(v) => self.a.store_imm(8, field(slot), v),
            Loc::Gpr(g) => match pinned(g) {
                Some(r) => self.a.store(8, r, field(slot)),
                None => {
                    self.a.load(8, T1, home(g));
                    self.a.store(8, T1, field(slot));
                }
            },
        }
    }

    /// Writes a description down for whoever comes next. Flags stay; T1 is lost.
    pub(super) fn store_desc(&mut self, desc: Desc) {
        if desc.op != op::DYNAMIC {
            self.store_loc(desc.a, regs::CC_A);
            if uses_b(desc.op) {
                self.store_loc(desc.b, regs::CC_B);
            }
        }
        if desc.over != over::DYNAMIC && desc.over != over::NONE {
            self.store_loc(desc.r, regs::CC_R);
        }
        match (desc.op, desc.over) {
            (op::DYNAMIC, over::DYNAMIC) => {}
            // What is in memory has nothing over it already.
            (op::DYNAMIC, over::NONE) => {}
            (op::DYNAMIC, o) => self.a.store_imm(1, field(regs::CC_OVER), i32::from(o as i8)),
            (o, over::DYNAMIC) => self.a.store_imm(1, field(regs::CC_OP), i32::from(o as i8)),
            (o, later) => {
                self.a.store_imm(2, field(regs::CC_OP), i32::from(u16::from(o) | u16::from(later) << 8))
            }
        }
    }

    /// Everything about the flags in memory: guest registers may change after.
    pub(super) fn settle(&mut self) {
        let desc = self.desc;
        self.store_desc(desc);
        let over = if desc.over == over::NONE { over::NONE } else { over::DYNAMIC };
        self.desc = Desc { over, ..Desc::UNKNOWN };
    }

    /// An operation `kind` is about to change some of the flags only, over what there is.
    pub(super) fn begin_over(&mut self, kind: u8) {
        let replaces = |old: u8| match kind & !3 {
            over::INC | over::DEC => old != over::NONE && old & !3 < over::CF,
            over::CF => old & !3 == over::CF,
            // CF and OF: all that these change.
            _ => old & !3 >= over::CF,
        };
        match self.desc.over {
            over::NONE => {}
            over::DYNAMIC => self.collapse_if_other(kind),
            old if replaces(old) => {}
            _ => {
                self.settle();
                self.collapse_if_other(kind);
            }
        }
    }

    /// Where something that `kind` does not replace is over the flags in memory: bring them together.
    fn collapse_if_other(&mut self, kind: u8) {
        let place = field(regs::CC_OVER);
        let from = if kind & !3 < over::CF {
            self.a.alu_imm(1, CMP, place, i32::from(over::CF));
            self.a.jcc(cc::AE)
        } else {
            self.a.alu_imm(1, CMP, place, i32::from(over::NONE));
            let fine = self.a.jcc(cc::E);
            self.a.alu_imm(1, CMP, place, i32::from(over::CF));
            let from = self.a.jcc(if kind & !3 == over::CF { cc::NE } else { cc::B });
            self.a.bind(fine);
            from
        };
        self.stubs.push(Stub::Collapse { from, back: self.a.pos() });
        self.desc = Desc::UNKNOWN;
        self.host = bit::NONE;
    }

    /// The host's flags, all of them, are the guest's and must be kept: described as an image.
    pub(super) fn save_image(&mut self) {
        self.a.mov(T1, RAX);
        self.a.flags_to_rax();
        self.a.store(2, RAX, field(regs::CC_A));
        self.a.mov(RAX, T1);
        self.desc = Desc::of(op::IMAGE, Loc::Slot, Loc::Slot);
    }

    /// The host's flags answer condition `cc` from here on. T0 and T1 are lost.
    pub(super) fn want_flags(&mut self, cc: u8) {
        let wanted = looks_at(cc);
        if wanted & !self.host == 0 || self.redo(wanted) {
            return;
        }
        let desc = self.desc;
        self.store_desc(desc);
        let call = self.a.call();
        self.lead_to(call, self.place.thunks.flags);
        self.desc = Desc::IN_MEMORY;
        self.host = bit::ALL;
    }

    /// A location as an operand, in a scratch register if it has to be.
    fn fetch(&mut self, loc: Loc, slot: i32, to: u8) {
        match loc {
            Loc::Slot => self.a.load(8, to, field(slot)),
            Loc::Imm(v) => self.a.mov_imm(to, v as i64 as u64),
            Loc::Gpr(g) => match pinned(g) {
                Some(r) => self.a.mov(to, r),
                None => self.a.load(8, to, home(g)),
            },
        }
    }

    /// Does the operation again on scratch registers; false when that is not simple.
    fn redo(&mut self, wanted: u8) -> bool {
        let Desc { op: operation, a, b, over: later, r } = self.desc;
        if matches!(later & !3, over::INC | over::DEC) && later != over::DYNAMIC && wanted & bit::CF == 0 {
            let size = 1 << (later & 3);
            self.fetch(r, regs::CC_R, T0);
            let (back, again) = if later & !3 == over::INC { (DEC, INC) } else { (INC, DEC) };
            self.a.unary(size, back, Rm::Reg(T0));
            self.a.unary(size, again, Rm::Reg(T0));
            self.host = bit::ALL & !bit::CF;
            return true;
        }
        if later != over::NONE || operation == op::DYNAMIC {
            return false;
        }
        let size = 1 << (operation & 3);
        let (x, y) = (Rm::Reg(T0), Rm::Reg(T1));
        match operation & !3 {
            op::ADD | op::SUB | op::CMP | op::TEST => {
                self.fetch(a, regs::CC_A, T0);
                self.fetch(b, regs::CC_B, T1);
                match operation & !3 {
                    op::ADD => {
                        self.a.alu(size, SUB, T0, y);
                        self.a.alu(size, ADD, T0, y);
                    }
                    op::SUB => {
                        self.a.alu(size, ADD, T0, y);
                        self.a.alu(size, SUB, T0, y);
                    }
                    op::CMP => self.a.alu(size, CMP, T0, y),
                    _ => self.a.test(size, T0, y),
                }
            }
            op::LOGIC => {
                self.fetch(a, regs::CC_A, T0);
                self.a.test(size, T0, x);
            }
            op::NEG => {
                self.fetch(a, regs::CC_A, T0);
                self.a.unary(size, NEG, x);
                self.a.unary(size, NEG, x);
            }
            shift @ (op::SHL | op::SHR | op::SAR) => {
                let Loc::Imm(n) = b else { return false };
                if n > 1 && wanted & bit::OF != 0 {
                    return false;
                }
                self.fetch(a, regs::CC_A, T0);
                let operation = match shift {
                    op::SHL => shifts::SHL,
                    op::SHR => shifts::SHR,
                    _ => shifts::SAR,
                };
                self.a.shift(size, operation, x, n as u8);
            }
            _ => return false,
        }
        self.host = bit::ALL;
        true
    }
}

/// Whether an operation has a second operand.
fn uses_b(operation: u8) -> bool {
    !matches!(operation & !3, op::LOGIC | op::NEG | op::IMAGE)
}
