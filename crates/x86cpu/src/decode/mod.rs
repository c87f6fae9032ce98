//! Bytes → [`Op`]s, by way of iced-x86.
//!
//! An instruction is decoded with its offset in the block as its address, so that nothing decoded
//! depends on where the block is mapped: RIP-relative operands and branch targets are offsets from
//! the block's start.

mod control;
mod integer;
mod operands;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::cpu::Mode;
use crate::fpu::{self, FpInsn};
use crate::op::Op;
use crate::ops::{branch, fp};

pub(crate) use integer::condition;
pub(crate) use operands::{Form, segment};

/// How an instruction ends its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A conditional branch: the block may go on behind it.
    Side,
    /// A branch with known targets, or an instruction after which events must be looked for.
    Direct,
    /// A branch to a target found at run time.
    Indirect,
    /// Mode, privilege or translation may have changed.
    System,
}

/// One decoded instruction.
pub(crate) struct Decoded {
    pub(crate) op: Op,
    pub(crate) end: Option<End>,
    /// To be put into `Cpu::fp_ops`, its index into `op.imm`.
    pub(crate) fp: Option<FpInsn>,
    /// A CMP or TEST that a conditional branch behind it can be fused with: operation and form of
    /// `ops::alu`, operand size.
    pub(crate) compare: Option<(u8, u8, u8)>,
    /// It is a conditional branch by flags (not LOOP, not JCXZ).
    pub(crate) jcc: bool,
}

impl Decoded {
    fn next(op: Op) -> Option<Self> {
        Some(Self { op, end: None, fp: None, compare: None, jcc: false })
    }

    fn end(op: Op, end: End) -> Option<Self> {
        Some(Self { op, end: Some(end), fp: None, compare: None, jcc: false })
    }
}

/// Why nothing was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    /// The instruction goes on behind the bytes.
    MoreBytes,
}

/// Decodes instructions one after the other.
pub(crate) struct Stream<'a> {
    decoder: Decoder<'a>,
    mode: Mode,
}

/// BSF and BSR in place of TZCNT and LZCNT (no BMI in CPUID); hint opcodes are NOPs (no CET, no MPX).
pub(crate) const OPTIONS: u32 = DecoderOptions::NO_MPFX_0FBC
    | DecoderOptions::NO_MPFX_0FBD
    | DecoderOptions::FORCE_RESERVED_NOP
    | DecoderOptions::NO_WBNOINVD;

impl<'a> Stream<'a> {
    pub(crate) fn new(bytes: &'a [u8], mode: Mode) -> Self {
        Self { decoder: Decoder::with_ip(mode.bits(), bytes, 0, OPTIONS), mode }
    }

    /// Offset of the next instruction.
    pub(crate) fn position(&self) -> usize {
        self.decoder.position()
    }

    pub(crate) fn next(&mut self) -> Result<Decoded, DecodeError> {
        let at = self.decoder.position();
        let insn = self.decoder.decode();
        match self.decoder.last_error() {
            DecoderError::None => Ok(decode(&insn, at as u16, self.mode)),
            DecoderError::NoMoreBytes => Err(DecodeError::MoreBytes),
            _ => {
                let len = self.decoder.position() - at;
                Ok(undefined(at as u16, len.min(15) as u8))
            }
        }
    }
}

fn undefined(at: u16, len: u8) -> Decoded {
    let op = Op { len, at, ..operands::blank() };
    Decoded {
        op: Op { run: branch::undefined, ..op },
        end: Some(End::System),
        fp: None,
        compare: None,
        jcc: false,
    }
}

fn decode(insn: &Instruction, at: u16, mode: Mode) -> Decoded {
    let form = Form::new(insn, at, mode);
    if let Some(done) = integer::decode(&form).or_else(|| control::decode(&form)) {
        return done;
    }
    if let Some(fp_insn) = fpu::decode(insn) {
        let size = if form.has_memory() { insn.memory_size().size().clamp(1, 512) as u16 } else { 0 };
        // Only legacy-mode limit checks use the size: 255 stands for the large images.
        let run = fp::handler(&fp_insn, form.kind());
        let op = Op { run, size: size.min(255) as u8, ..form.op() };
        let op = operands::string_target(insn, mode, fp::prepare(&fp_insn, op));
        return Decoded { op, end: None, fp: Some(fp_insn), compare: None, jcc: false };
    }
    undefined(at, insn.len() as u8)
}
