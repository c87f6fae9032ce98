//! From iced's instruction to a kernel with its operands. MMX and SSE here, x87 in `x87/table.rs`.

use iced_x86::{CodeSize, Instruction, Mnemonic as M, OpKind, Register};

use super::insn::{Class, FlagsUse, Form, FpInsn, Kernel, Lanes, Loc, Value};
use super::simd::{arith as a, convert as cv, integer as i, moves as m, shuffle as s, strings as st};
use super::x87;

/// Decodes an x87, MMX or SSE instruction; `None` for every other.
pub fn decode(insn: &Instruction) -> Option<FpInsn> {
    if let Some(op) = special(insn) {
        return Some(op);
    }
    if let Some(op) = x87::decode(insn) {
        return Some(op);
    }
    let ops = Operands::of(insn);
    let kernel = kernel(insn, &ops)?;
    let class = if ops.xmm || sse_only(insn.mnemonic()) { Class::Sse } else { Class::Mmx };
    let mut op = FpInsn::new(kernel, class);
    op.imm = ops.imm;
    op.mmx = ops.mm;
    op.d = ops.loc[0];
    op.a = if matches!(op.d, Loc::Mem(_)) { Loc::None } else { op.d };
    op.b = ops.loc[1];
    op.aligned = ops.mem == 16 && !unaligned(insn.mnemonic());
    match insn.mnemonic() {
        M::Comiss | M::Ucomiss | M::Comisd | M::Ucomisd | M::Ptest => {
            op.d = Loc::Flags;
            op.flags = FlagsUse::Writes;
        }
        M::Pcmpestri | M::Pcmpistri | M::Pcmpestri64 => {
            op.d = Loc::G64(1);
            op.flags = FlagsUse::Writes;
        }
        M::Pcmpestrm | M::Pcmpistrm | M::Pcmpestrm64 => {
            op.d = Loc::Xmm(0);
            op.flags = FlagsUse::Writes;
        }
        M::Emms => op.form = Form::X87,
        _ => {}
    }
    Some(op)
}

/// Instructions without an XMM register operand that belong to SSE all the same.
fn sse_only(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Stmxcsr | Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi | Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si
    )
}

fn unaligned(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Movups
            | Movupd
            | Movdqu
            | Lddqu
            | Pcmpestri
            | Pcmpestrm
            | Pcmpistri
            | Pcmpistrm
            | Pcmpestri64
            | Pcmpestrm64
    )
}

/// Operands in our terms.
struct Operands {
    loc: [Loc; 2],
    imm: u8,
    /// Bytes of the memory operand.
    mem: u8,
    /// Some operand is an XMM (MMX) register.
    xmm: bool,
    mm: bool,
    /// Size of a general register operand in bytes.
    gpr: u8,
}

impl Operands {
    fn of(insn: &Instruction) -> Operands {
        let mut o = Operands { loc: [Loc::None; 2], imm: 0, mem: 0, xmm: false, mm: false, gpr: 0 };
        for k in 0..insn.op_count() {
            let loc = match insn.op_kind(k) {
                OpKind::Register => o.register(insn.op_register(k)),
                OpKind::Memory => {
                    o.mem = insn.memory_size().size().min(255) as u8;
                    Loc::Mem(o.mem)
                }
                OpKind::Immediate8 => {
                    o.imm = insn.immediate8();
                    Loc::Imm
                }
                _ => Loc::None,
            };
            if let Some(slot) = o.loc.get_mut(k as usize) {
                *slot = loc;
            }
        }
        o
    }

    fn register(&mut self, r: Register) -> Loc {
        let n = r.number() as u8;
        if r.is_xmm() {
            self.xmm = true;
            Loc::Xmm(n)
        } else if r.is_mm() {
            self.mm = true;
            Loc::Mmx(n)
        } else if r.is_gpr64() {
            self.gpr = 8;
            Loc::G64(n)
        } else if r.is_gpr32() {
            self.gpr = 4;
            Loc::G32(n)
        } else {
            Loc::None
        }
    }

    fn stores(&self) -> bool {
        matches!(self.loc[0], Loc::Mem(_))
    }

    fn loads(&self) -> bool {
        matches!(self.loc[1], Loc::Mem(_))
    }
}

/// State images and masked stores.
fn special(insn: &Instruction) -> Option<FpInsn> {
    let wide = matches!(insn.mnemonic(), M::Fxsave64 | M::Fxrstor64);
    let long = insn.code_size() == CodeSize::Code64;
    let (form, class) = match insn.mnemonic() {
        M::Ldmxcsr => (Form::Ldmxcsr, Class::Sse),
        M::Fxsave | M::Fxsave64 => (Form::Fxsave, Class::Fxsr),
        M::Fxrstor | M::Fxrstor64 => (Form::Fxrstor, Class::Fxsr),
        M::Maskmovq => (Form::Maskmov, Class::Mmx),
        M::Maskmovdqu => (Form::Maskmov, Class::Sse),
        _ => return None,
    };
    let mut op = FpInsn::new(Kernel::Value(m::mov), class);
    op.form = form;
    op.extra = u16::from(wide) | u16::from(long) << 1;
    if form == Form::Maskmov {
        // Operand 0 is the memory at DI.
        let mut o = Operands::of(insn);
        op.a = o.register(insn.op_register(1));
        op.b = o.register(insn.op_register(2));
        op.mmx = o.mm;
    }
    Some(op)
}

fn kernel(insn: &Instruction, o: &Operands) -> Option<Kernel> {
    let m = insn.mnemonic();
    if !(o.xmm || o.mm || m == M::Emms || sse_only(m)) {
        return None;
    }
    let lanes = || {
        let own = if o.mm && !o.xmm { mmx_own(m) } else { None };
        own.or_else(|| integer(m)).or_else(|| if o.xmm { shuffles(m) } else { None }).map(Kernel::Lanes)
    };
    let others = || {
        let vector = if o.xmm { floats(m).or_else(|| strings(m)).or_else(|| blends(m)) } else { None };
        vector.or_else(|| conversions(m, o)).map(Kernel::Value)
    };
    moves(m, o).map(Kernel::Value).or_else(lanes).or_else(others)
}

fn moves(mnemonic: M, o: &Operands) -> Option<Value> {
    use M::*;
    Some(match mnemonic {
        Movaps | Movups | Movapd | Movupd | Movdqa | Movdqu | Lddqu | Movntdqa | Movntdq | Movntps
        | Movntpd | Movntq | Movd | Movq2dq => m::mov,
        // A 64-bit move clears the upper half of a register, and stores only its low.
        Movq | Movdq2q => m::low64,
        Movss if o.stores() || o.loads() => m::mov,
        Movss => m::merge32,
        Movsd if o.stores() || o.loads() => m::mov,
        Movsd => m::merge64,
        Movlps | Movlpd if o.stores() => m::mov,
        Movlps | Movlpd => m::merge64,
        Movhps | Movhpd if o.stores() => m::high,
        Movhps | Movhpd | Movlhps => m::low_to_high,
        Movhlps => m::high_to_low,
        Movddup => m::movddup,
        Movsldup => m::movsldup,
        Movshdup => m::movshdup,
        Pmovmskb => m::pmovmskb,
        Movmskps => m::movmskps,
        Movmskpd => m::movmskpd,
        Pinsrw if o.mm => m::pinsrw_mmx,
        Pextrw if o.mm => m::pextrw_mmx,
        Pinsrb => m::pinsrb,
        Pinsrw => m::pinsrw,
        Pinsrd => m::pinsrd,
        Pinsrq => m::pinsrq,
        Pextrb => m::pextrb,
        Pextrw => m::pextrw,
        Pextrd | Extractps => m::pextrd,
        Pextrq => m::pextrq,
        Insertps if o.loads() => m::insertps_mem,
        Insertps => m::insertps_reg,
        Stmxcsr => m::stmxcsr,
        Emms => x87::emms,
        _ => return None,
    })
}

/// Kernels whose lanes cross the 64 bits of an MMX register.
fn mmx_own(mnemonic: M) -> Option<Lanes> {
    use M::*;
    Some(match mnemonic {
        Pshufw => s::pshuflw,
        Pshufb => s::pshufb_mmx,
        Palignr => s::palignr_mmx,
        Packsswb => s::packsswb_mmx,
        Packuswb => s::packuswb_mmx,
        Packssdw => s::packssdw_mmx,
        Punpcklbw => s::punpcklbw,
        Punpcklwd => s::punpcklwd,
        Punpckldq => s::punpckldq,
        Punpckhbw => s::punpckhbw_mmx,
        Punpckhwd => s::punpckhwd_mmx,
        Punpckhdq => s::punpckhdq_mmx,
        Phaddw => i::phaddw_mmx,
        Phaddd => i::phaddd_mmx,
        Phaddsw => i::phaddsw_mmx,
        Phsubw => i::phsubw_mmx,
        Phsubd => i::phsubd_mmx,
        Phsubsw => i::phsubsw_mmx,
        _ => return None,
    })
}

macro_rules! table {
    ($fn:ident, $kind:ty, $module:ident: $($mnemonic:ident $kernel:ident,)*) => {
        fn $fn(mnemonic: M) -> Option<$kind> {
            Some(match mnemonic { $(M::$mnemonic => $module::$kernel,)* _ => return None })
        }
    };
}

table! { integer, Lanes, i:
    Paddb paddb, Paddw paddw, Paddd paddd, Paddq paddq, Psubb psubb, Psubw psubw, Psubd psubd, Psubq psubq,
    Paddsb paddsb, Paddsw paddsw, Paddusb paddusb, Paddusw paddusw,
    Psubsb psubsb, Psubsw psubsw, Psubusb psubusb, Psubusw psubusw,
    Pmullw pmullw, Pmulhw pmulhw, Pmulhuw pmulhuw, Pmulhrsw pmulhrsw, Pmulld pmulld, Pmuludq pmuludq, Pmuldq pmuldq,
    Pmaddwd pmaddwd, Pmaddubsw pmaddubsw, Psadbw psadbw, Mpsadbw mpsadbw, Phminposuw phminposuw,
    Pcmpeqb pcmpeqb, Pcmpeqw pcmpeqw, Pcmpeqd pcmpeqd, Pcmpeqq pcmpeqq,
    Pcmpgtb pcmpgtb, Pcmpgtw pcmpgtw, Pcmpgtd pcmpgtd, Pcmpgtq pcmpgtq,
    Pminub pminub, Pmaxub pmaxub, Pminsb pminsb, Pmaxsb pmaxsb, Pminuw pminuw, Pmaxuw pmaxuw,
    Pminsw pminsw, Pmaxsw pmaxsw, Pminud pminud, Pmaxud pmaxud, Pminsd pminsd, Pmaxsd pmaxsd,
    Pavgb pavgb, Pavgw pavgw, Psignb psignb, Psignw psignw, Psignd psignd, Pabsb pabsb, Pabsw pabsw, Pabsd pabsd,
    Pand pand, Pandn pandn, Por por, Pxor pxor, Andps pand, Andnps pandn, Orps por, Xorps pxor,
    Andpd pand, Andnpd pandn, Orpd por, Xorpd pxor,
    Psllw psllw, Pslld pslld, Psllq psllq, Psrlw psrlw, Psrld psrld, Psrlq psrlq, Psraw psraw, Psrad psrad,
    Pslldq pslldq, Psrldq psrldq,
    Phaddw phaddw, Phaddd phaddd, Phaddsw phaddsw, Phsubw phsubw, Phsubd phsubd, Phsubsw phsubsw, Ptest ptest,
}

table! { shuffles, Lanes, s:
    Pshufd pshufd, Pshuflw pshuflw, Pshufhw pshufhw, Shufps shufps, Shufpd shufpd, Pshufb pshufb, Palignr palignr,
    Punpcklbw punpcklbw, Punpcklwd punpcklwd, Punpckldq punpckldq, Punpcklqdq punpcklqdq,
    Punpckhbw punpckhbw, Punpckhwd punpckhwd, Punpckhdq punpckhdq, Punpckhqdq punpckhqdq,
    Unpcklps punpckldq, Unpcklpd punpcklqdq, Unpckhps punpckhdq, Unpckhpd punpckhqdq,
    Packsswb packsswb, Packuswb packuswb, Packssdw packssdw, Packusdw packusdw,
    Pmovsxbw pmovsxbw, Pmovsxbd pmovsxbd, Pmovsxbq pmovsxbq, Pmovsxwd pmovsxwd, Pmovsxwq pmovsxwq, Pmovsxdq pmovsxdq,
    Pmovzxbw pmovzxbw, Pmovzxbd pmovzxbd, Pmovzxbq pmovzxbq, Pmovzxwd pmovzxwd, Pmovzxwq pmovzxwq, Pmovzxdq pmovzxdq,
    Pblendw pblendw, Blendps blendps, Blendpd blendpd,
}

table! { strings, Value, st:
    Pcmpistri pcmpistri, Pcmpistrm pcmpistrm, Pcmpestri pcmpestri, Pcmpestrm pcmpestrm,
    Pcmpestri64 pcmpestri64, Pcmpestrm64 pcmpestrm64,
}

table! { blends, Value, s:
    Pblendvb pblendvb, Blendvps blendvps, Blendvpd blendvpd,
}

table! { floats, Value, a:
    Addps addps, Addss addss, Addpd addpd, Addsd addsd, Subps subps, Subss subss, Subpd subpd, Subsd subsd,
    Mulps mulps, Mulss mulss, Mulpd mulpd, Mulsd mulsd, Divps divps, Divss divss, Divpd divpd, Divsd divsd,
    Sqrtps sqrtps, Sqrtss sqrtss, Sqrtpd sqrtpd, Sqrtsd sqrtsd,
    Minps minps, Minss minss, Minpd minpd, Minsd minsd, Maxps maxps, Maxss maxss, Maxpd maxpd, Maxsd maxsd,
    Cmpps cmpps, Cmpss cmpss, Cmppd cmppd, Cmpsd cmpsd,
    Roundps roundps, Roundss roundss, Roundpd roundpd, Roundsd roundsd,
    Rcpps rcpps, Rcpss rcpss, Rsqrtps rsqrtps, Rsqrtss rsqrtss,
    Comiss comiss, Ucomiss ucomiss, Comisd comisd, Ucomisd ucomisd,
    Addsubps addsubps, Addsubpd addsubpd, Haddps haddps, Haddpd haddpd, Hsubps hsubps, Hsubpd hsubpd,
    Dpps dpps, Dppd dppd,
}

fn conversions(m: M, o: &Operands) -> Option<Value> {
    use M::*;
    let to_wide = matches!(o.loc[0], Loc::G64(_));
    // The integer source of CVTSI2xx is a register or memory of 4 or 8 bytes.
    let from_wide = matches!(o.loc[1], Loc::G64(_) | Loc::Mem(8));
    Some(match m {
        Cvtsi2ss if from_wide => cv::cvtsi2ss_64,
        Cvtsi2ss => cv::cvtsi2ss_32,
        Cvtsi2sd if from_wide => cv::cvtsi2sd_64,
        Cvtsi2sd => cv::cvtsi2sd_32,
        Cvtss2si if to_wide => cv::cvtss2si_64,
        Cvtss2si => cv::cvtss2si_32,
        Cvttss2si if to_wide => cv::cvttss2si_64,
        Cvttss2si => cv::cvttss2si_32,
        Cvtsd2si if to_wide => cv::cvtsd2si_64,
        Cvtsd2si => cv::cvtsd2si_32,
        Cvttsd2si if to_wide => cv::cvttsd2si_64,
        Cvttsd2si => cv::cvttsd2si_32,
        Cvtps2pd => cv::cvtps2pd,
        Cvtpd2ps => cv::cvtpd2ps,
        Cvtss2sd => cv::cvtss2sd,
        Cvtsd2ss => cv::cvtsd2ss,
        Cvtdq2ps => cv::cvtdq2ps,
        Cvtdq2pd => cv::cvtdq2pd,
        Cvtps2dq => cv::cvtps2dq,
        Cvttps2dq => cv::cvttps2dq,
        Cvtpd2dq => cv::cvtpd2dq,
        Cvttpd2dq => cv::cvttpd2dq,
        Cvtpi2ps => cv::cvtpi2ps,
        Cvtpi2pd => cv::cvtdq2pd,
        Cvtps2pi => cv::cvtps2pi,
        Cvttps2pi => cv::cvttps2pi,
        Cvtpd2pi => cv::cvtpd2pi,
        Cvttpd2pi => cv::cvttpd2pi,
        _ => return None,
    })
}
