//! ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT: every width, every operand form.

use crate::cpu::{Cpu, Trap};
use crate::flags::Flags;
use crate::op::{Handler, Op};
use crate::ops::operand::{ANY, FLAT, SEG, mask, sext};

pub(crate) const ADD: u8 = 0;
pub(crate) const OR: u8 = 1;
pub(crate) const ADC: u8 = 2;
pub(crate) const SBB: u8 = 3;
pub(crate) const AND: u8 = 4;
pub(crate) const SUB: u8 = 5;
pub(crate) const XOR: u8 = 6;
pub(crate) const CMP: u8 = 7;
pub(crate) const TEST: u8 = 8;

/// Operand forms: destination, source. The memory ones come in the three address kinds, in order.
pub(crate) const RR: u8 = 0;
pub(crate) const RI: u8 = 1;
pub(crate) const RM: u8 = 2;
pub(crate) const MR: u8 = 5;
pub(crate) const MI: u8 = 8;
/// LOCK forms, address kind ANY.
pub(crate) const LOCK_R: u8 = 11;
pub(crate) const LOCK_I: u8 = 12;

/// What an addition or subtraction gives.
#[derive(Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) value: u64,
    pub(crate) carry: u64,
    pub(crate) aux: u64,
}

/// `a + b + cin` in `B` bits.
#[inline(always)]
pub(crate) fn add<const B: u32>(a: u64, b: u64, cin: u64) -> Sum {
    let value = a.wrapping_add(b).wrapping_add(cin);
    let carries = (a & b) | ((a | b) & !value);
    Sum { value: value & mask::<B>(), carry: carries << (64 - B), aux: (a ^ b ^ value) & 0x10 }
}

/// `a - b - bin` in `B` bits.
#[inline(always)]
pub(crate) fn sub<const B: u32>(a: u64, b: u64, bin: u64) -> Sum {
    let value = a.wrapping_sub(b).wrapping_sub(bin);
    let borrows = (!a & b) | ((!a | b) & value);
    Sum { value: value & mask::<B>(), carry: borrows << (64 - B), aux: (a ^ b ^ value) & 0x10 }
}

/// The operation of [`alu`] on values.
#[inline(always)]
pub(crate) fn compute<const OP: u8, const B: u32>(a: u64, b: u64, cf: u64) -> Sum {
    match OP {
        ADD => add::<B>(a, b, 0),
        ADC => add::<B>(a, b, cf),
        SUB | CMP => sub::<B>(a, b, 0),
        SBB => sub::<B>(a, b, cf),
        OR => Sum { value: a | b, carry: 0, aux: 0 },
        XOR => Sum { value: a ^ b, carry: 0, aux: 0 },
        _ => Sum { value: a & b, carry: 0, aux: 0 },
    }
}

impl Flags {
    /// Takes the flags of a [`Sum`].
    #[inline(always)]
    pub(crate) fn set_sum<const B: u32>(&mut self, sum: Sum) {
        self.result = sext::<B>(sum.value);
        self.carry = sum.carry;
        self.aux = sum.aux;
    }
}

#[inline(always)]
fn address<const F: u8, const B: u32>(cpu: &Cpu, op: &Op, write: bool) -> Result<u64, Trap> {
    match F {
        RR | RI => Ok(0),
        LOCK_R | LOCK_I => cpu.address::<ANY>(op, B / 8, write),
        _ => match (F - RM) % 3 {
            FLAT => cpu.address::<FLAT>(op, B / 8, write),
            SEG => cpu.address::<SEG>(op, B / 8, write),
            _ => cpu.address::<ANY>(op, B / 8, write),
        },
    }
}

/// Linear address of a memory form that has a quick way.
#[inline(always)]
fn quick_address<const F: u8>(cpu: &Cpu, op: &Op) -> Option<u64> {
    if !(RM..LOCK_R).contains(&F) {
        return None;
    }
    match (F - RM) % 3 {
        FLAT => Some(cpu.quick_address::<FLAT>(op)),
        SEG => Some(cpu.quick_address::<SEG>(op)),
        _ => None,
    }
}

/// The two-operand group.
pub(crate) fn alu<const OP: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    if F < RM {
        return alu_full::<OP, F, B>(cpu, op);
    }
    if let Some(lin) = quick_address::<F>(cpu, op) {
        let cf = u64::from(cpu.flags.cf());
        let writes = OP != CMP && OP != TEST;
        if F < MR {
            if let Some(b) = cpu.quick_load::<B>(lin) {
                let sum = compute::<OP, B>(cpu.reg::<B>(op.dst), b, cf);
                if writes {
                    cpu.set_reg::<B>(op.dst, sum.value);
                }
                cpu.flags.set_sum::<B>(sum);
                return Ok(());
            }
        } else {
            let b = if F < MI { cpu.reg::<B>(op.src) } else { op.imm };
            let a = if writes { cpu.quick_load_rmw::<B>(lin) } else { cpu.quick_load::<B>(lin) };
            if let Some(a) = a {
                let sum = compute::<OP, B>(a, b, cf);
                if !writes || cpu.quick_store::<B>(lin, sum.value) {
                    cpu.flags.set_sum::<B>(sum);
                    return Ok(());
                }
            }
        }
    }
    alu_outlined::<OP, F, B>(cpu, op)
}

#[cold]
#[inline(never)]
fn alu_outlined<const OP: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    alu_full::<OP, F, B>(cpu, op)
}

#[inline(always)]
fn alu_full<const OP: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let cf = u64::from(cpu.flags.cf());
    let writes = OP != CMP && OP != TEST;
    if F < MR {
        let b = match F {
            RR => cpu.reg::<B>(op.src),
            RI => op.imm,
            _ => {
                let lin = address::<F, B>(cpu, op, false)?;
                cpu.load::<B>(lin)?
            }
        };
        let sum = compute::<OP, B>(cpu.reg::<B>(op.dst), b, cf);
        if writes {
            cpu.set_reg::<B>(op.dst, sum.value);
        }
        cpu.flags.set_sum::<B>(sum);
        return Ok(());
    }
    let b = if F == LOCK_R || (MR..MI).contains(&F) { cpu.reg::<B>(op.src) } else { op.imm };
    let lin = address::<F, B>(cpu, op, writes)?;
    let sum = if F >= LOCK_R {
        let old = cpu.atomic_op::<B>(lin, |a| compute::<OP, B>(a, b, cf).value)?;
        compute::<OP, B>(old, b, cf)
    } else if writes {
        let sum = compute::<OP, B>(cpu.load_rmw::<B>(lin)?, b, cf);
        cpu.store::<B>(lin, sum.value)?;
        sum
    } else {
        compute::<OP, B>(cpu.load::<B>(lin)?, b, cf)
    };
    cpu.flags.set_sum::<B>(sum);
    Ok(())
}

/// SUB or XOR of a register with itself: the usual way to zero.
pub(crate) fn zero_reg(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    cpu.gpr[usize::from(op.dst & 15)] = 0;
    cpu.flags.set_sum::<64>(Sum { value: 0, carry: 0, aux: 0 });
    Ok(())
}

pub(crate) const INC: u8 = 0;
pub(crate) const DEC: u8 = 1;
pub(crate) const NEG: u8 = 2;
pub(crate) const NOT: u8 = 3;

/// Forms of the one-operand group: a register, memory by address kind, LOCK.
pub(crate) const U_REG: u8 = 0;
pub(crate) const U_MEM: u8 = 1;
pub(crate) const U_LOCK: u8 = 4;

#[inline(always)]
fn unary_sum<const OP: u8, const B: u32>(a: u64) -> Sum {
    match OP {
        INC => add::<B>(a, 1, 0),
        DEC => sub::<B>(a, 1, 0),
        NEG => sub::<B>(0, a, 0),
        _ => Sum { value: !a & mask::<B>(), carry: 0, aux: 0 },
    }
}

/// INC, DEC, NEG, NOT.
pub(crate) fn unary<const OP: u8, const F: u8, const B: u32>(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let sum = if F == U_REG {
        let sum = unary_sum::<OP, B>(cpu.reg::<B>(op.dst));
        cpu.set_reg::<B>(op.dst, sum.value);
        sum
    } else {
        let lin = match F {
            1 => cpu.address::<FLAT>(op, B / 8, true)?,
            2 => cpu.address::<SEG>(op, B / 8, true)?,
            _ => cpu.address::<ANY>(op, B / 8, true)?,
        };
        if F == U_LOCK {
            unary_sum::<OP, B>(cpu.atomic_op::<B>(lin, |a| unary_sum::<OP, B>(a).value)?)
        } else {
            let sum = unary_sum::<OP, B>(cpu.load_rmw::<B>(lin)?);
            cpu.store::<B>(lin, sum.value)?;
            sum
        }
    };
    match OP {
        NOT => {}
        NEG => cpu.flags.set_sum::<B>(sum),
        _ => {
            // CF stays: put the old one into bit 63 and flip bit 62 with it so that OF stays right.
            let cf = cpu.flags.carry & (1 << 63);
            let keep = (sum.carry ^ cf) & (1 << 63);
            cpu.flags.set_sum::<B>(Sum { carry: sum.carry ^ (keep | (keep >> 1)), ..sum });
        }
    }
    Ok(())
}

macro_rules! by_size {
    ($f:ident, $($c:expr),*) => {
        [$f::<$({ $c },)* 8> as Handler, $f::<$({ $c },)* 16>, $f::<$({ $c },)* 32>, $f::<$({ $c },)* 64>]
    };
}
pub(crate) use by_size;

macro_rules! alu_forms {
    ($op:expr) => {
        [
            by_size!(alu, $op, 0),
            by_size!(alu, $op, 1),
            by_size!(alu, $op, 2),
            by_size!(alu, $op, 3),
            by_size!(alu, $op, 4),
            by_size!(alu, $op, 5),
            by_size!(alu, $op, 6),
            by_size!(alu, $op, 7),
            by_size!(alu, $op, 8),
            by_size!(alu, $op, 9),
            by_size!(alu, $op, 10),
            by_size!(alu, $op, 11),
            by_size!(alu, $op, 12),
        ]
    };
}

/// Handlers by operation, form, log2 of the operand size in bytes.
pub(crate) static ALU: [[[Handler; 4]; 13]; 9] = [
    alu_forms!(ADD),
    alu_forms!(OR),
    alu_forms!(ADC),
    alu_forms!(SBB),
    alu_forms!(AND),
    alu_forms!(SUB),
    alu_forms!(XOR),
    alu_forms!(CMP),
    alu_forms!(TEST),
];

macro_rules! unary_forms {
    ($op:expr) => {
        [
            by_size!(unary, $op, 0),
            by_size!(unary, $op, 1),
            by_size!(unary, $op, 2),
            by_size!(unary, $op, 3),
            by_size!(unary, $op, 4),
        ]
    };
}

/// Handlers by operation, form, log2 of the operand size in bytes.
pub(crate) static UNARY: [[[Handler; 4]; 5]; 4] =
    [unary_forms!(INC), unary_forms!(DEC), unary_forms!(NEG), unary_forms!(NOT)];
