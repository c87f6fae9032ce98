//! The assembler: bytes of x86-64 instructions into a buffer, and the forward jumps inside it.
//!
//! Only encodings that translations need. Registers are hardware numbers; which guest register is
//! where is `regs`'s business.

/// Condition codes (SDM vol. 1, appendix B).
pub(super) mod cc {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const NS: u8 = 9;
}

/// In place of a base: there is none, and an index must be there.
const NO_BASE: u8 = 5 | 0x40;

/// A memory operand: base, index and log2 of its scale, displacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mem {
    pub base: u8,
    pub index: Option<(u8, u8)>,
    pub disp: i32,
}

impl Mem {
    pub fn at(base: u8, disp: i32) -> Mem {
        Mem { base, index: None, disp }
    }

    /// An index times a power of two, and a displacement.
    pub fn scaled(index: u8, scale: u8, disp: i32) -> Mem {
        Mem { base: NO_BASE, index: Some((index, scale)), disp }
    }
}

/// Register or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rm {
    Reg(u8),
    Mem(Mem),
}

/// Opcode prefixes that are part of an instruction's name.
pub(super) const NONE: u8 = 0;
pub(super) const P66: u8 = 0x66;

/// A jump whose target is not known yet: the place of its 32-bit displacement.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(pub usize);

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
    pub fn clear(&mut self) {
        self.buf.clear();
        self.split = None;
    }

    #[inline]
    pub fn pos(&self) -> usize {
        self.buf.len()
    }

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

    /// `mov reg, rm` of `size` bytes.
    pub fn load(&mut self, size: u8, reg: u8, rm: Rm) {
        self.sized(size, 0x8a, reg, rm);
    }

    /// As [`Asm::load`], with zeros above: nothing waits for what the register had.
    pub fn load_whole(&mut self, size: u8, reg: u8, rm: Rm) {
        match size {
            1 | 2 => self.op(NONE, false, false, &[0x0f, 0xb6 | size >> 1], reg, rm),
            _ => self.load(size, reg, rm),
        }
    }

    /// `mov rm, reg` of `size` bytes.
    pub fn store(&mut self, size: u8, reg: u8, rm: Rm) {
        self.sized(size, 0x88, reg, rm);
    }

    pub fn mov(&mut self, to: u8, from: u8) {
        self.load(8, to, Rm::Reg(from));
    }

    /// `mov reg, v`, in the shortest form; flags stay.
    pub fn mov_imm(&mut self, reg: u8, v: u64) {
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

    /// `mov size [m], v` (sign-extended to 64 bits).
    pub fn store_imm(&mut self, size: u8, rm: Rm, v: i32) {
        self.group(size, 0xc6, 0, rm);
        self.imm(size, v);
    }

    /// One of the eight ALU operations with an immediate.
    pub fn alu_imm(&mut self, size: u8, operation: u8, rm: Rm, v: i32) {
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

    /// One of the eight ALU operations, `reg op= rm`.
    pub fn alu(&mut self, size: u8, operation: u8, reg: u8, rm: Rm) {
        self.sized(size, operation << 3 | 2, reg, rm);
    }

    /// One of the eight ALU operations, `rm op= reg`.
    pub fn alu_to(&mut self, size: u8, operation: u8, reg: u8, rm: Rm) {
        self.sized(size, operation << 3, reg, rm);
    }

    /// `cmp reg, [rip + …]` of 8 bytes: what is bound is the place that it is compared with.
    pub fn cmp_with_place(&mut self, reg: u8) -> Jump {
        self.byte(0x48 | (reg >> 3) << 2);
        self.bytes(&[0x3b, (reg & 7) << 3 | 5]);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    /// `reg := from >> by` in its low bits, of 64 bits; the upper `by` bits are not zero where `rotates`, which is what
    /// the instruction of BMI2 makes. Flags are lost.
    pub fn shifted(&mut self, rotates: bool, reg: u8, from: u8, by: u8) {
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

    pub fn lea(&mut self, reg: u8, m: Mem) {
        self.op(NONE, true, false, &[0x8d], reg, Rm::Mem(m));
    }

    pub fn jcc(&mut self, cc: u8) -> Jump {
        self.bytes(&[0x0f, 0x80 | cc]);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    pub fn jmp(&mut self) -> Jump {
        self.byte(0xe9);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    pub fn call(&mut self) -> Jump {
        self.byte(0xe8);
        self.imm32(0);
        Jump(self.pos() - 4)
    }

    /// What is emitted from here on will stand at `place`, a distance from where the buffer will.
    pub fn split_here(&mut self, place: i64) {
        self.split = Some((self.pos(), place - self.pos() as i64));
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

    /// The jump leads to `place`, a distance from where the buffer will stand.
    pub fn bind_to_place(&mut self, jump: Jump, place: i64) {
        let rel = (place - self.place_of(jump.0) - 4) as i32;
        self.buf[jump.0..jump.0 + 4].copy_from_slice(&rel.to_le_bytes());
    }

    /// The jump leads to a position in the buffer.
    pub fn bind_to(&mut self, jump: Jump, pos: usize) {
        self.bind_to_place(jump, self.place_of(pos));
    }

    /// The jump leads here.
    pub fn bind(&mut self, jump: Jump) {
        self.bind_to(jump, self.pos());
    }
}
