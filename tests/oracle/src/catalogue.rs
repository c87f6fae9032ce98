//! Which instructions are generated: every 64-bit form that the portable profile has, without
//! those whose effect is not the program's own (system, I/O, far transfers).

use iced_x86::{Code, CpuidFeature as F, EncodingKind, Mnemonic as M};

use crate::native::Native;

/// The features of the portable profile, and what the host calls those it may lack.
fn allowed(feature: F) -> Option<&'static str> {
    use F::*;
    Some(match feature {
        INTEL8086 | INTEL8086_ONLY | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | FXSR
        | FPU | FPU287 | FPU387 | MMX | SSE | SSE2 | MULTIBYTENOP | PAUSE | CLFSH | PREFETCHW => "",
        SSE3 => "sse3",
        SSSE3 => "ssse3",
        SSE4_1 => "sse4.1",
        SSE4_2 => "sse4.2",
        POPCNT => "popcnt",
        CMPXCHG16B => "cmpxchg16b",
        _ => return None,
    })
}

/// Mnemonics left out by hand.
fn excluded(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Syscall
            | Sysenter
            | Sysexit
            | Sysret
            | Int
            | Int1
            | Int3
            | Into
            | Hlt
            | Cpuid
            | Rdtsc
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Lfs
            | Lgs
            | Lss
            | Lar
            | Lsl
            | Verr
            | Verw
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Popfq
            | Popf
            | Clflush
            | Enter
            | Reservednop
            | In
            | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Cli
            | Sti
            | Ud0
            | Ud1
            | Prefetch
    )
}

/// One form to generate.
#[derive(Clone, Copy)]
pub struct Entry {
    pub code: Code,
}

/// All forms, and the names of features that the host lacks.
pub fn entries() -> (Vec<Entry>, Vec<&'static str>) {
    let mut lacking = Vec::new();
    let list = Code::values().filter(|code| wanted(*code, &mut lacking)).map(|code| Entry { code }).collect();
    lacking.sort_unstable();
    lacking.dedup();
    (list, lacking)
}

fn wanted(code: Code, lacking: &mut Vec<&'static str>) -> bool {
    let info = code.op_code();
    let m = code.mnemonic();
    let plain = info.encoding() == EncodingKind::Legacy
        && info.is_instruction()
        && info.mode64()
        && !info.fwait()
        && !code.is_privileged()
        && !code.is_jmp_far()
        && !code.is_jmp_far_indirect()
        && !code.is_call_far()
        && !code.is_call_far_indirect()
        && !excluded(m)
        // Intel reads 16 bits there, AMD 32.
        && code != Code::Movsxd_r16_rm16
        && !uses_segments(code);
    plain
        && code.cpuid_features().iter().all(|f| match allowed(*f) {
            None => false,
            Some(name) if !Native::has(name) => {
                lacking.push(name);
                false
            }
            Some(_) => true,
        })
}

/// Segment registers are the host's own: never loaded or read.
fn uses_segments(code: Code) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    code.op_code()
        .op_kinds()
        .iter()
        .any(|k| matches!(k, K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs))
}
