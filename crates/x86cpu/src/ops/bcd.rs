//! DAA DAS AAA AAS AAM AAD: decimal adjustment, outside of 64-bit mode (SDM vol. 2).

use arch::x86_64::regs::gpr::RAX;

use crate::cpu::{Cpu, Trap};
use crate::op::Op;
use crate::ops::operand::sext;

pub(crate) const DAA: u8 = 0;
pub(crate) const DAS: u8 = 1;
pub(crate) const AAA: u8 = 2;
pub(crate) const AAS: u8 = 3;
pub(crate) const AAM: u8 = 4;
pub(crate) const AAD: u8 = 5;

/// The six instructions; `aux` says which, `imm` is the base of AAM and AAD.
pub(crate) fn adjust(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
    let al = cpu.reg::<8>(RAX as u8);
    let ah = (cpu.gpr[RAX] >> 8) & 0xff;
    let (cf, af) = (cpu.flags.cf(), cpu.flags.af());
    match op.aux {
        DAA | DAS => {
            let low = al & 0xf > 9 || af;
            let high = al > 0x99 || cf;
            let fix = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
            let r = if op.aux == DAA { al.wrapping_add(fix) } else { al.wrapping_sub(fix) } & 0xff;
            let borrow = op.aux == DAS && low && al < 6;
            cpu.set_reg::<8>(RAX as u8, r);
            cpu.flags.set_result(sext::<8>(r), high || borrow, false, low);
        }
        AAA | AAS => {
            let adjust = al & 0xf > 9 || af;
            let ax = cpu.reg::<16>(RAX as u8);
            let ax = match (adjust, op.aux) {
                (false, _) => ax,
                (true, AAA) => ax.wrapping_add(0x106),
                (true, _) => ax.wrapping_sub(0x106),
            };
            cpu.set_reg::<16>(RAX as u8, ax & 0xff0f);
            cpu.flags.set_result(ax & 0xf, adjust, false, adjust);
        }
        AAM => {
            if op.imm == 0 {
                return Err(Trap::DE);
            }
            let (q, r) = (al / op.imm, al % op.imm);
            cpu.set_reg::<16>(RAX as u8, (q << 8) | r);
            cpu.flags.set_result(sext::<8>(r), false, false, false);
        }
        _ => {
            let r = al.wrapping_add(ah.wrapping_mul(op.imm)) & 0xff;
            cpu.set_reg::<16>(RAX as u8, r);
            cpu.flags.set_result(sext::<8>(r), false, false, false);
        }
    }
    Ok(())
}
