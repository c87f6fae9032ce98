//! The host code of about a hundred instruction forms, kept as text so that a change of it shows in review.
//!
//! `golden.txt` has a line `> BYTES` for each form (guest bytes in hexadecimal, one instruction or several);
//! what stands below it is made from it. `UPDATE=1 cargo test -p x86cpu golden` writes the file anew; another
//! form is another such line.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

use guestmem::GuestMemory;

use super::emit_x86_64::Asm;
use super::lower::{Gen, Place, Tables, Thunks, translate};
use super::regs;
use super::scan::{Lines, read};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/jit/golden.txt");
/// Where the guest's code stands, and the host's.
const GUEST: u64 = 0x40_0100;
const HOST: u64 = 0x8000;
/// What translations look in.
const TABLES: Tables = Tables { tlb: Some(0x1000_0000), jumps: Some(0x2000_0000) };
/// The place that exits are compared with at first.
const NOWHERE: usize = 0x4000;
const THUNKS: [&str; 14] = [
    "enter", "leave", "fill", "handler", "flags", "collapse", "xmm_load", "x87_load", "indirect", "unlinked",
    "transfer", "enable", "stack", "missed",
];

fn place() -> Place {
    let at = |name| 0x100 * (1 + THUNKS.iter().position(|thunk| *thunk == name).expect("a name of THUNKS"));
    let thunks = Thunks {
        enter: at("enter"),
        leave: at("leave"),
        fill: at("fill"),
        handler: at("handler"),
        flags: at("flags"),
        collapse: at("collapse"),
        xmm_load: at("xmm_load"),
        x87_load: at("x87_load"),
        indirect: at("indirect"),
        unlinked: at("unlinked"),
        transfer: at("transfer"),
        missed: at("missed"),
        enable: at("enable"),
        stack: [[at("stack"); 10]; 2],
    };
    Place {
        at: HOST as usize,
        aside: None,
        thunks,
        bank: 0,
        first_site: 0,
        first_exit: 0,
        first_op: 0,
        nowhere: NOWHERE,
        second: None,
        tables: TABLES,
        bmi2: true,
        frame: false,
    }
}

/// What is at a distance from the state pointer.
fn field(disp: i32) -> String {
    const NAMED: [(i32, &str); 15] = [
        (regs::BUDGET, "budget"),
        (regs::CC_A, "cc.a"),
        (regs::CC_B, "cc.b"),
        (regs::CC_C, "cc.c"),
        (regs::CC_R, "cc.r"),
        (regs::CC_OP, "cc.op"),
        (regs::CC_OVER, "cc.over"),
        (regs::LIVE, "live"),
        (regs::X87, "x87"),
        (regs::TMP, "tmp"),
        (regs::TMP2, "tmp2"),
        (regs::LIN, "lin"),
        (regs::TLB, "tlb"),
        (regs::JUMPS, "jumps"),
        (regs::PAGE, "page"),
    ];
    match NAMED.iter().find(|(at, _)| *at == disp) {
        Some((_, name)) => (*name).into(),
        None if (0..128).contains(&disp) => format!("gpr{}", disp / 8),
        None if disp == regs::RIP => "rip".into(),
        None => "cpu".into(),
    }
}

fn memory(insn: &Instruction) -> String {
    let (base, index, disp) = (insn.memory_base(), insn.memory_index(), insn.memory_displacement64() as i64);
    if insn.is_ip_rel_memory_operand() {
        return "[nowhere]".into();
    }
    if base == Register::RBP && index == Register::None {
        return format!("[{}]", field(disp as i32));
    }
    let mut text = String::from("[");
    if base != Register::None {
        let _ = write!(text, "{base:?}");
    }
    if index != Register::None {
        let _ = write!(text, "+{index:?}*{}", insn.memory_index_scale());
    }
    if disp != 0 {
        let _ = write!(text, "{disp:+#x}");
    }
    text + "]"
}

fn operand(insn: &Instruction, i: u32) -> String {
    match insn.op_kind(i) {
        OpKind::Register => format!("{:?}", insn.op_register(i)),
        OpKind::Memory => memory(insn),
        OpKind::NearBranch64 => match insn.near_branch_target() {
            thunk @ 0..HOST => THUNKS.get((thunk >> 8) as usize - 1).copied().unwrap_or("?").into(),
            target => format!("+{:#x}", target - HOST),
        },
        other => insn.try_immediate(i).map_or_else(|_| format!("{other:?}"), |v| format!("{v:#x}")),
    }
}

fn instruction(insn: &Instruction) -> String {
    let operands: Vec<_> = (0..insn.op_count()).map(|i| operand(insn, i)).collect();
    let lock = if insn.has_lock_prefix() { "lock " } else { "" };
    format!("{lock}{:?} {}", insn.mnemonic(), operands.join(", ")).trim_end().to_lowercase()
}

fn decode(bytes: &[u8], at: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).into_iter().collect()
}

/// The text of one form: the guest's instructions, and all of the host's.
fn form(hex: &str) -> String {
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal digits"))
        .collect();
    let guest = decode(&bytes, GUEST);
    let memory = GuestMemory::new(1 << 20).expect("memory");
    memory.write(GUEST & 0xfff, &bytes).expect("RAM");
    let (mut made, mut page) = (Gen::<Asm>::default(), [0; 4096]);
    let mut lines = Lines::new(&mut page, &memory, 0);
    assert!(read(&mut made.unit, &mut lines, None, GUEST & 0xfff, guest.len()), "something to translate");
    translate(&mut made, place());
    let host = made.a.buf;
    let mut text = format!("> {hex}\n");
    guest.iter().for_each(|i| writeln!(text, "; {}", instruction(i)).expect("text"));
    for insn in decode(&host, HOST) {
        let start = (insn.ip() - HOST) as usize;
        let code: String = host[start..start + insn.len()].iter().map(|b| format!("{b:02x}")).collect();
        // Where fields of `Cpu` lie is nobody's business: only their names are compared.
        let far = insn.memory_base() == Register::RBP && insn.memory_displ_size() == 8;
        let code = if far || code.len() > 22 { String::new() } else { code };
        writeln!(text, "  {start:3x}  {code:22}  {}", instruction(&insn)).expect("text");
    }
    text + "\n"
}

#[test]
fn golden() {
    let old = std::fs::read_to_string(FILE).expect("golden.txt is there");
    let comment: String = old.lines().take_while(|l| l.starts_with('#')).map(|l| format!("{l}\n")).collect();
    let forms: Vec<_> = old.lines().filter_map(|l| l.strip_prefix("> ")).collect();
    assert!(forms.len() >= 100, "only {} forms", forms.len());
    let new = comment + "\n" + &forms.iter().map(|hex| form(hex)).collect::<String>();
    let new = new.trim_end().to_string() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(FILE, new).expect("golden.txt can be written");
        return;
    }
    for (number, (a, b)) in old.lines().zip(new.lines()).enumerate() {
        assert_eq!(a, b, "golden.txt:{}; if it is meant, run this with UPDATE=1", number + 1);
    }
    assert_eq!(
        old.len(),
        new.len(),
        "golden.txt is of another length; if it is meant, run this with UPDATE=1"
    );
}
