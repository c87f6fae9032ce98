//! The emitter for x86-64: the guest's operations are the host's, so that each has one template, which is its encoding.
//!
//! [`Asm`] has the general forms, which the thunks use, too; what lowering asks for is [`Emit`] for it. Registers are
//! hardware numbers; which guest register is where is `regs`'s business.

use super::emit::{Emit, Jump, Mem, NO_BASE, Rm, Sse};
use crate::ops::alu::{DEC, INC, NOT, TEST};

/// Opcode prefixes that are part of an instruction's name.
pub(super) const NONE: u8 = 0;
pub(super) const P66: u8 = 0x66;

/// Bytes of an instruction at most.
const LONGEST: usize = 16;

/// An instruction on its way into the buffer, which then grows once for it.
#[derive(Default)]
struct Encoding {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Encoding {
    #[inline]
    fn byte(&mut self, b: u8) {
        self.bytes[self.len % LONGEST] = b;
        self.len += 1;
    }

    #[inline]
    fn imm32(&mut self, v: i32) {
        v.to_le_bytes().into_iter().for_each(|b| self.byte(b));
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.min(LONGEST)]
    }

    #[inline]
    fn modrm(&mut self, reg: u8, rm: Rm) {
        let m = match rm {
            Rm::Reg(r) => return self.byte(0xc0 | reg << 3 | r & 7),
            Rm::Mem(m) => m,
        };
        let low = m.base & 7;
        let mode = match m.disp {
            _ if m.base == NO_BASE => 0,
            0 if low != 5 => 0,
            -128..=127 => 1,
            _ => 2,
        };
        match m.index {
            Some((index, scale)) => {
                self.byte(mode << 6 | reg << 3 | 4);
                self.byte(scale << 6 | (index & 7) << 3 | low);
            }
            None if low == 4 => {
                self.byte(mode << 6 | reg << 3 | 4);
                self.byte(0x24);
            }
            None => self.byte(mode << 6 | reg << 3 | low),
        }
        match mode {
            1 => self.byte(m.disp as u8),
            2 => self.imm32(m.disp),
            _ if m.base == NO_BASE => self.imm32(m.disp),
            _ => {}
        }
    }
}

/// Code in two pieces, the second of which will stand elsewhere: distances count that from [`Asm::split_here`] on.
#[derive(Default)]
pub(super) struct Asm {
    pub buf: Vec<u8>,
    /// Where the second piece begins, and how much farther away than behind the first it will stand.
    split: Option<(usize, i64)>,
}

impl Asm {
    #[inline]
    pub fn byte(&mut self, b: u8) {
        self.buf.push(b);
    }

    #[inline]
    pub fn bytes(&mut self, b: &[u8]) {
        self.buf.extend_from_slice(b);
    }

    #[inline]
    pub fn imm32(&mut self, v: i32) {
        self.bytes(&v.to_le_bytes());
    }

    /// An immediate of an operand of `size` bytes; 64-bit operands have 32-bit ones.
    pub fn imm(&mut self, size: u8, v: i32) {
        match size {
            1 => self.byte(v as u8),
            2 => self.bytes(&(v as i16).to_le_bytes()),
            _ => self.imm32(v),
        }
    }

    /// `[prefix] [REX] opcode modrm`: the general form. `wide`: REX.W. `rex`: a REX prefix in any case
    /// (the low bytes of registers 4 to 7).
    pub fn op(&mut self, prefix: u8, wide: bool, rex: bool, opcode: &[u8], reg: u8, rm: Rm) {
        let mut one = Encoding::default();
        if prefix != NONE {
            one.byte(prefix);
        }
        let (x, b) = match rm {
            Rm::Reg(r) => (0, r >> 3),
            Rm::Mem(m) => (m.index.map_or(0, |(i, _)| i >> 3), m.base >> 3 & 1),
        };
        let bits = u8::from(wide) << 3 | (reg >> 3) << 2 | x << 1 | b;
        if bits != 0 || rex {
            one.byte(0x40 | bits);
        }
        opcode.iter().for_each(|b| one.byte(*b));
        one.modrm(reg & 7, rm);
        self.bytes(one.bytes());
    }

    /// An instruction of the classic kind: opcode `op8` for bytes, `op8 | 1` for the other sizes.
    pub fn sized(&mut self, size: u8, op8: u8, reg: u8, rm: Rm) {
        let prefix = if size == 2 { P66 } else { NONE };
        let low_bytes = size == 1 && ((4..8).contains(&reg) || matches!(rm, Rm::Reg(4..=7)));
        self.op(prefix, size == 8, low_bytes, &[op8 | u8::from(size != 1)], reg, rm);
    }

    /// As [`Asm::sized`], where `reg` extends the opcode.
    pub fn group(&mut self, size: u8, op8: u8, extension: u8, rm: Rm) {
        let prefix = if size == 2 { P66 } else { NONE };
        let low_bytes = size == 1 && matches!(rm, Rm::Reg(4..=7));
        self.op(prefix, size == 8, low_bytes, &[op8 | u8::from(size != 1)], extension, rm);
    }

    /// A two-byte opcode on operands of 2, 4 or 8 bytes.
    pub fn wide_op(&mut self, size: u8, opcode: u8, reg: u8, rm: Rm) {
        let prefix = if size == 2 { P66 } else { NONE };
        self.op(prefix, size == 8, false, &[0x0f, opcode], reg, rm);
    }

    /// Both pieces.
    pub fn pieces(&self) -> (&[u8], &[u8]) {
        self.buf.split_at(self.split.map_or(self.buf.len(), |(at, _)| at))
    }

    /// Where a position in the buffer will be, from where the buffer will.
    pub fn place_of(&self, pos: usize) -> i64 {
        match self.split {
            Some((at, by)) if pos >= at => pos as i64 + by,
            _ => pos as i64,
        }
    }

    /// XADD and CMPXCHG, with LOCK: opcode `op8` for bytes, `op8 | 1` for the other sizes.
    fn locked(&mut self, size: u8, op8: u8, reg: u8, m: Rm) {
        self.lock();
        let low = size == 1 && (4..8).contains(&reg);
        self.op(word(size), size == 8, low, &[0x0f, op8 | u8::from(size != 1)], reg, m);
    }
}

/// The prefix of operands of 2 bytes.
fn word(size: u8) -> u8 {
    if size == 2 { P66 } else { NONE }
}

/// Whether a byte register needs a REX prefix, which makes 4 to 7 the low bytes.
fn low_byte(reg: u8, high: bool) -> bool {
    !high && (4..8).contains(&reg)
}

impl Emit for Asm {
    fn clear(&mut self) {
        self.buf.clear();
        self.split = None;
    }

    #[inline]
    fn pos(&self) -> usize {
        self.buf.len()
    }

    fn split_here(&mut self, place: i64) {
        self.split = Some((self.pos(), place - self.pos() as i64));
    }

    fn bind_to_place(&mut self, jump: Jump, place: i64) {
        let rel = (place - self.place_of(jump.0) - 4) as i32;
        self.buf[jump.0..jump.0 + 4].copy_from_slice(&rel.to_le_bytes());
    }

    fn bind_to(&mut self, jump: Jump, pos: usize) {
        self.bind_to_place(jump, self.place_of(pos));
    }

    fn jmp(&mut self) -> Jump {
        self.byte(0xe9);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    fn jcc(&mut self, cc: u8) -> Jump {
        self.bytes(&[0x0f, 0x80 | cc]);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    fn call(&mut self) -> Jump {
        self.byte(0xe8);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    fn jmp_to(&mut self, m: Mem) {
        self.op(NONE, false, false, &[0xff], 4, Rm::Mem(m));
    }

    fn cmp_with_place(&mut self, reg: u8) -> Jump {
        self.byte(0x48 | (reg >> 3) << 2);
        self.bytes(&[0x3b, (reg & 7) << 3 | 5]);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    fn load(&mut self, size: u8, reg: u8, rm: Rm) {
        self.sized(size, 0x8a, reg, rm);
    }

    fn load_whole(&mut self, size: u8, reg: u8, rm: Rm) {
        match size {
            1 | 2 => self.op(NONE, false, false, &[0x0f, 0xb6 | size >> 1], reg, rm),
            _ => self.load(size, reg, rm),
        }
    }

    fn store(&mut self, size: u8, reg: u8, rm: Rm) {
        self.sized(size, 0x88, reg, rm);
    }

    fn store_imm(&mut self, size: u8, rm: Rm, v: i32) {
        self.group(size, 0xc6, 0, rm);
        self.imm(size, v);
    }

    fn mov_imm(&mut self, reg: u8, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            if reg > 7 {
                self.byte(0x41);
            }
            self.byte(0xb8 | reg & 7);
            self.imm32(v as i32);
        } else if let Ok(v) = i32::try_from(v as i64) {
            self.op(NONE, true, false, &[0xc7], 0, Rm::Reg(reg));
            self.imm32(v);
        } else {
            self.byte(0x48 | reg >> 3);
            self.byte(0xb8 | reg & 7);
            self.bytes(&v.to_le_bytes());
        }
    }

    fn lea(&mut self, reg: u8, m: Mem) {
        self.op(NONE, true, false, &[0x8d], reg, Rm::Mem(m));
    }

    fn extend(&mut self, to: u8, from: u8, signed: bool, reg: u8, rm: Rm) {
        let (prefix, low) = (word(to), from == 1 && matches!(rm, Rm::Reg(4..=7)));
        match (signed, from) {
            // MOVSXD
            (true, 4) => self.op(prefix, to == 8, false, &[0x63], reg, rm),
            (true, _) => self.op(prefix, to == 8, low, &[0x0f, 0xbe | u8::from(from == 2)], reg, rm),
            _ => self.op(prefix, to == 8, low, &[0x0f, 0xb6 | u8::from(from == 2)], reg, rm),
        }
    }

    fn extend_rax(&mut self, size: u8, into_rdx: bool) {
        match size {
            2 => self.byte(P66),
            8 => self.byte(0x48),
            _ => {}
        }
        self.byte(0x98 | u8::from(into_rdx));
    }

    fn swap_bytes(&mut self, size: u8, reg: u8) {
        if size == 8 || reg > 7 {
            self.byte(0x40 | u8::from(size == 8) << 3 | reg >> 3);
        }
        self.bytes(&[0x0f, 0xc8 | reg & 7]);
    }

    fn set(&mut self, cc: u8, rm: Rm) {
        self.op(NONE, false, matches!(rm, Rm::Reg(4..=7)), &[0x0f, 0x90 | cc], 0, rm);
    }

    fn cmov(&mut self, size: u8, cc: u8, reg: u8, rm: Rm) {
        self.wide_op(size, 0x40 | cc, reg, rm);
    }

    fn flags_to_rax(&mut self) {
        // LAHF, SETO AL
        self.byte(0x9f);
        self.set(0, Rm::Reg(0));
    }

    fn alu(&mut self, size: u8, operation: u8, reg: u8, rm: Rm) {
        self.sized(size, operation << 3 | 2, reg, rm);
    }

    fn alu_to(&mut self, size: u8, operation: u8, reg: u8, rm: Rm) {
        self.sized(size, operation << 3, reg, rm);
    }

    fn alu_imm(&mut self, size: u8, operation: u8, rm: Rm, v: i32) {
        if size == 1 {
            self.group(1, 0x80, operation, rm);
            self.byte(v as u8);
        } else if i8::try_from(v).is_ok() {
            // 0x83 has bit 0 set already.
            self.group(size, 0x83, operation, rm);
            self.byte(v as u8);
        } else {
            self.group(size, 0x80, operation, rm);
            self.imm(size, v);
        }
    }

    fn test(&mut self, size: u8, reg: u8, rm: Rm) {
        self.sized(size, 0x84, reg, rm);
    }

    fn test_imm(&mut self, size: u8, rm: Rm, v: i32) {
        self.group(size, 0xf6, 0, rm);
        self.imm(size, v);
    }

    fn unary(&mut self, size: u8, operation: u8, rm: Rm) {
        let (opcode, extension) = match operation {
            INC => (0xfe, 0),
            DEC => (0xfe, 1),
            NOT => (0xf6, 2),
            _ => (0xf6, 3),
        };
        self.group(size, opcode, extension, rm);
    }

    fn shift(&mut self, size: u8, operation: u8, rm: Rm, by: u8) {
        self.group(size, 0xc0, operation, rm);
        self.byte(by);
    }

    fn shift_by_cl(&mut self, size: u8, operation: u8, reg: u8) {
        self.group(size, 0xd2, operation, Rm::Reg(reg));
    }

    fn shifted(&mut self, rotates: bool, reg: u8, from: u8, by: u8) {
        if rotates {
            // RORX
            self.bytes(&[0xc4, (!reg & 8) << 4 | 0x40 | (!from & 8) << 2 | 3, 0xfb, 0xf0]);
            self.bytes(&[0xc0 | (reg & 7) << 3 | from & 7, by]);
        } else {
            self.mov(reg, from);
            self.group(8, 0xc1, 5, Rm::Reg(reg));
            self.byte(by);
        }
    }

    fn double_shift(&mut self, size: u8, left: bool, reg: u8, from: u8, by: Option<u8>) {
        let opcode = if left { 0xa4 } else { 0xac };
        self.wide_op(size, opcode | u8::from(by.is_none()), from, Rm::Reg(reg));
        by.into_iter().for_each(|by| self.byte(by));
    }

    fn imul(&mut self, size: u8, reg: u8, rm: Rm) {
        self.wide_op(size, 0xaf, reg, rm);
    }

    fn imul_imm(&mut self, size: u8, reg: u8, rm: Rm, v: i32) {
        self.op(word(size), size == 8, false, &[0x69], reg, rm);
        self.imm(size, v);
    }

    fn mul(&mut self, size: u8, signed: bool, rm: Rm) {
        self.group(size, 0xf6, 4 + u8::from(signed), rm);
    }

    fn div(&mut self, size: u8, signed: bool, reg: u8) {
        self.group(size, 0xf6, 6 + u8::from(signed), Rm::Reg(reg));
    }

    fn bit_test(&mut self, size: u8, kind: u8, rm: Rm, bit: u8) {
        // BT BTS BTR BTC: A3 AB B3 BB.
        self.wide_op(size, 0xa3 + 8 * kind, bit, rm);
    }

    fn bit_test_imm(&mut self, size: u8, kind: u8, rm: Rm, bit: u8) {
        self.wide_op(size, 0xba, 4 + kind, rm);
        self.byte(bit);
    }

    fn bit_scan(&mut self, size: u8, reverse: bool, reg: u8, rm: Rm) {
        self.wide_op(size, 0xbc + u8::from(reverse), reg, rm);
    }

    fn popcnt(&mut self, size: u8, reg: u8, rm: Rm) {
        // The mandatory prefix comes after the operand size's.
        if size == 2 {
            self.byte(P66);
        }
        self.op(0xf3, size == 8, false, &[0x0f, 0xb8], reg, rm);
    }

    fn crc32(&mut self, from: u8, wide: bool, reg: u8, rm: Rm) {
        if from == 2 {
            self.byte(P66);
        }
        let low = from == 1 && matches!(rm, Rm::Reg(4..=7));
        self.op(0xf2, wide, low, &[0x0f, 0x38, 0xf0 | u8::from(from != 1)], reg, rm);
    }

    fn lock(&mut self) {
        self.byte(0xf0);
    }

    fn fence(&mut self) {
        self.bytes(&[0x0f, 0xae, 0xf0]);
    }

    fn exchange(&mut self, size: u8, reg: u8, m: Rm) {
        self.sized(size, 0x86, reg, m);
    }

    fn exchange_add(&mut self, size: u8, reg: u8, m: Rm) {
        self.locked(size, 0xc0, reg, m);
    }

    fn compare_exchange(&mut self, size: u8, reg: u8, m: Rm) {
        self.locked(size, 0xb0, reg, m);
    }

    fn compare_exchange_pair(&mut self, bytes: u8, m: Rm) {
        self.lock();
        self.op(NONE, bytes == 16, false, &[0x0f, 0xc7], 1, m);
    }

    fn load_high(&mut self, high: u8, m: Rm) {
        self.op(NONE, false, false, &[0x8a], high, m);
    }

    fn store_high(&mut self, high: u8, m: Rm) {
        self.op(NONE, false, false, &[0x88], high, m);
    }

    fn set_high(&mut self, high: u8, v: u8) {
        self.bytes(&[0xb0 | high, v]);
    }

    fn byte_alu(&mut self, operation: u8, reg: u8, high: bool, m: Rm) {
        let opcode = if operation == TEST { 0x84 } else { operation << 3 | 2 };
        self.op(NONE, false, low_byte(reg, high), &[opcode], reg, m);
    }

    fn byte_alu_imm(&mut self, operation: u8, reg: u8, high: bool, v: u8) {
        let (opcode, extension) = if operation == TEST { (0xf6, 0) } else { (0x80, operation) };
        self.op(NONE, false, low_byte(reg, high), &[opcode], extension, Rm::Reg(reg));
        self.byte(v);
    }

    fn sse(&mut self, encoding: &Sse, reg: u8, rm: Rm, imm: Option<u8>) {
        self.op(encoding.prefix, encoding.wide, false, encoding.opcode, reg, rm);
        imm.into_iter().for_each(|v| self.byte(v));
    }

    fn x87(&mut self, opcode: u8, modrm: u8) {
        self.bytes(&[opcode, modrm]);
    }

    fn x87_memory(&mut self, opcode: u8, extension: u8, m: Rm) {
        self.op(NONE, false, false, &[opcode], extension, m);
    }
}
