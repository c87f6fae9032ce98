//! The differential run of the test command: a fixed seed, every form about 150 times.

use iced_x86::{Code, OpKind, Register};
use oracle::case::{SCRATCH, SCRATCH_LEN};
use oracle::rng::Rng;
use oracle::run::{Options, TRANSLATE_ALL, run};
use oracle::{generate, soft};
use x86cpu::Engine;

#[test]
fn soft_cpu_agrees_with_the_host() {
    agrees(Engine::Interpreter, 200_000, 4);
}

#[test]
fn translated_code_agrees_with_the_host() {
    agrees(TRANSLATE_ALL, 200_000, 2);
}

fn agrees(engine: Engine, cases: u64, sequences: u64) {
    let options = Options { cases, seed: 0x5eed, only: None, fpu_only: false, sequences, engine, keep: 10 };
    let report = match run(&options) {
        Ok(report) => report,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    for feature in &report.lacking {
        eprintln!("SKIPPED: forms of {feature}, which the host lacks");
    }
    let differ = report.total(|c| c.differ);
    assert_eq!(differ, 0, "{differ} cases differ from the host; the first:\n{}", report.differing.join("\n"));
}

/// Found with seed 8009: BT of an absolute address by RAX reached what the oracle's process had mapped there.
#[test]
fn bit_tests_stay_where_both_sides_have_the_same() {
    use Code::*;
    let forms = [Bt_rm16_r16, Bt_rm32_r32, Bt_rm64_r64, Bts_rm64_r64, Btr_rm32_r32, Btc_rm64_r64];
    let mut in_memory = 0;
    for (i, form) in forms.into_iter().cycle().enumerate().take(60_000) {
        let Some(case) = generate::case(&mut Rng(i as u64), form) else { continue };
        let insn = soft::decode(&case);
        if insn.op0_kind() != OpKind::Memory {
            continue;
        }
        in_memory += 1;
        let value = |register: Register| match register {
            Register::GS => oracle::case::GS_BASE,
            _ if register.is_gpr64() => case.before.gpr[register.number()],
            _ if register.is_gpr32() => case.before.gpr[register.number()] & 0xffff_ffff,
            // The other segments.
            _ => 0,
        };
        let base = insn.virtual_address(0, 0, |register, _, _| Some(value(register)));
        let offset = case.before.gpr[insn.op1_register().full_register().number()];
        let bytes = match insn.op1_register().size() {
            2 => (i64::from(offset as i16) >> 4) * 2,
            4 => (i64::from(offset as i32) >> 5) * 4,
            _ => ((offset as i64) >> 6).wrapping_mul(8),
        };
        let at = base.expect("an address").wrapping_add(bytes as u64);
        let near = at.wrapping_sub(SCRATCH) < 2 * SCRATCH_LEN as u64;
        assert!(
            near || (at as i64) << 16 >> 16 != at as i64,
            "{} reaches {at:#x}",
            oracle::compare::line(&case)
        );
    }
    assert!(in_memory > 10_000, "only {in_memory} with a memory operand");
}
