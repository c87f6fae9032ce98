//! Runs `cases/*.txt`: one instruction (or a few) a line, registers and memory before and after.
//!
//! `NAME: BYTES ; IN => OUT`, both sides `key=value` words, numbers in hex without 0x:
//! - `rax`…`r15`; `cf pf af zf sf of df`: one flag; `m:ADDR`: bytes at an address;
//! - in only: `mode` = `long` (default), `real`, `prot32`; `n` = instructions to run (default: all of
//!   BYTES, `*n`: up to n); `cr0` bits to add; `cpl` = 3;
//! - out only: `rip` (`+N` is relative to the code), `fault` = vector, `err`, `cr2`.
//!
//! What OUT does not name must not have changed; when it names any arithmetic flag, the other
//! arithmetic flags are free (undefined by the manual).
//!
//! Memory: code at 1000, data at 2000-5fff (stack from 5000 down), 6000 not present, 7000 read-only
//! (supervisor too: CR0.WP is set), identity-mapped below 2 MiB.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arch::x86_64::regs::seg;
use arch::x86_64::state::{Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

const CODE: u64 = 0x1000;
const STACK: u64 = 0x5000;
const GDT: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const IDT: u64 = 0x1_0000;
const TABLES: u64 = 0x2_0000;
const FLAGS: [(&str, u64); 7] =
    [("cf", 1), ("pf", 4), ("af", 16), ("zf", 64), ("sf", 128), ("of", 2048), ("df", 1024)];
const ARITH: u64 = 0x8d5;
const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

type Words<'a> = BTreeMap<&'a str, &'a str>;

fn words(text: &str) -> Words<'_> {
    text.split_whitespace().map(|w| w.split_once('=').unwrap_or_else(|| panic!("no '=' in {w}"))).collect()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("not hex: {text}"))
}

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|p| hex(&p.iter().collect::<String>()) as u8).collect()
}

fn lay_tables(memory: &GuestMemory, long: bool, user: bool) {
    let put = |at: u64, v: u64| memory.write_le(at, v).expect("tables are RAM");
    let bits = if user { 7 } else { 3 };
    for level in 0..3 {
        put(TABLES + level * 0x1000, (TABLES + (level + 1) * 0x1000) | bits);
    }
    for page in 0..512u64 {
        let bits = match page {
            6 => 0,
            7 => bits & !2,
            _ => bits,
        };
        put(TABLES + 0x3000 + page * 8, (page << 12) | bits);
    }
    put(GDT + 0x08, 0x00af_9b00_0000_ffff);
    put(GDT + 0x10, 0x00cf_9300_0000_ffff);
    put(GDT + 0x18, 0x00cf_9b00_0000_ffff);
    for vector in 0..32u64 {
        let handler = HANDLERS + vector * 16;
        memory.write_le::<u8>(handler, 0xf4).expect("handlers are RAM");
        let selector = if long { 0x08 } else { 0x18 };
        let gate = (handler & 0xffff) | (selector << 16) | (0x8e00 << 32);
        put(IDT + vector * if long { 16 } else { 8 }, gate);
        if long {
            put(IDT + vector * 16 + 8, 0);
        }
    }
}

fn machine(memory: &GuestMemory) -> Cpu {
    let clock = Arc::new(Clock::new(1_000_000));
    let cpuid = arch::x86_64::cpuid::portable(1, 1_000_000).into();
    Cpu::new(CpuConfig { memory: memory.clone(), id: 0, cpuid, clock, apic_bus: Arc::new(ApicBus::new(1)) })
}

fn start_state(base: &VcpuState, input: &Words<'_>) -> VcpuState {
    let mut s = base.clone();
    let mode = input.get("mode").copied().unwrap_or("long");
    let user = input.get("cpl") == Some(&"3");
    let dpl = if user { 0x60 } else { 0 };
    let flat = |selector, limit, attr| Segment { selector, base: 0, limit, attr };
    s.idtr = TableReg { base: IDT, limit: 0x1ff };
    s.gdtr = TableReg { base: GDT, limit: 0x1f };
    match mode {
        "real" => {
            s.seg = [flat(0, 0xffff, 0x93); 6];
            s.seg[seg::CS] = flat(0, 0xffff, 0x9b);
            s.cr0 = 0x10;
        }
        "prot32" => {
            s.seg = [flat(0x10, u32::MAX, 0xc093); 6];
            s.seg[seg::CS] = flat(0x18, u32::MAX, 0xc09b);
            s.cr0 = 0x31;
        }
        _ => {
            let rpl = if user { 3 } else { 0 };
            s.seg = [flat(0x10 | rpl, u32::MAX, 0xc093 | dpl); 6];
            s.seg[seg::CS] = flat(0x08 | rpl, u32::MAX, 0xa09b | dpl);
            s.cr0 = 0x8001_0031;
            s.cr3 = TABLES;
            s.cr4 = 0x620;
            s.msrs.efer = 0x500;
        }
    }
    s.rip = CODE;
    s.gpr = [0; 16];
    s.gpr[4] = STACK;
    s.rflags = 2;
    for (key, value) in input {
        if let Some(i) = NAMES.iter().position(|n| n == key) {
            s.gpr[i] = hex(value);
        } else if let Some((_, bit)) = FLAGS.iter().find(|(n, _)| n == key) {
            s.rflags |= if *value == "1" { *bit } else { 0 };
        } else if *key == "cr0" {
            s.cr0 |= hex(value);
        }
    }
    s
}

/// How every case is run. One instruction at a time is how the cases without `n` run.
const ENGINES: [Engine; 3] =
    [Engine::Interpreter, Engine::Jit { after: 0, longest: 1 }, Engine::Jit { after: 0, longest: 4 }];

fn check(line: &str, engine: Engine) -> Result<(), String> {
    let (head, rest) = line.split_once(';').ok_or("no ';'")?;
    let (_, code) = head.split_once(':').ok_or("no ':'")?;
    let (input, output) = rest.split_once("=>").ok_or("no '=>'")?;
    let (input, output, code) = (words(input), words(output), bytes(code));
    let memory = GuestMemory::new(2 << 20).map_err(|e| e.to_string())?;
    let long = input.get("mode").is_none_or(|m| *m == "long");
    lay_tables(&memory, long, input.get("cpl") == Some(&"3"));
    memory.write(CODE, &code).map_err(|e| e.to_string())?;
    for (key, value) in &input {
        if let Some(at) = key.strip_prefix("m:") {
            memory.write(hex(at), &bytes(value)).map_err(|e| e.to_string())?;
        }
    }
    let mut cpu = machine(&memory);
    cpu.set_engine(engine);
    let before = start_state(&cpu.save(), &input);
    cpu.restore(&before).map_err(|e| format!("{e:?}"))?;
    let stop = match input.get("n") {
        Some(n) => cpu.run(hex(n)),
        None => run_through(&mut cpu, CODE + code.len() as u64),
    };
    if !matches!(stop, Stop::Budget | Stop::Halt) {
        return Err(format!("stopped with {stop:?}"));
    }
    compare(&before, &cpu.save(), &output, code.len() as u64, &memory)
}

/// One instruction at a time until `end`, a fault handler, or 1000 instructions.
fn run_through(cpu: &mut Cpu, end: u64) -> Stop {
    for _ in 0..1000 {
        let stop = cpu.run(1);
        let rip = cpu.save().rip;
        if stop != Stop::Budget || rip >= end || rip < CODE {
            return stop;
        }
    }
    Stop::Budget
}

fn compare(
    before: &VcpuState,
    after: &VcpuState,
    output: &Words<'_>,
    len: u64,
    memory: &GuestMemory,
) -> Result<(), String> {
    let fault = (HANDLERS..HANDLERS + 0x200).contains(&after.rip).then(|| (after.rip - HANDLERS) / 16);
    let wanted = output.get("fault").map(|v| hex(v));
    if fault != wanted {
        return Err(format!("fault {fault:x?}, wanted {wanted:x?} (rip {:x})", after.rip));
    }
    if let Some(cr2) = output.get("cr2")
        && hex(cr2) != after.cr2
    {
        return Err(format!("cr2 {:x}", after.cr2));
    }
    if let Some(err) = output.get("err") {
        let pushed = memory.read_le::<u32>(after.gpr[4]).map_err(|e| e.to_string())?;
        if u64::from(pushed) != hex(err) {
            return Err(format!("error code {pushed:x}"));
        }
    }
    for (i, name) in NAMES.iter().enumerate() {
        let value = output.get(name).map_or(before.gpr[i], |v| hex(v));
        if value != after.gpr[i] && !(fault.is_some() && i == 4) {
            return Err(format!("{name} is {:x}, wanted {value:x}", after.gpr[i]));
        }
    }
    let names_any = FLAGS.iter().any(|(n, bit)| bit & ARITH != 0 && output.contains_key(n));
    for (name, bit) in FLAGS {
        let wanted = match output.get(name) {
            Some(v) => *v == "1",
            None if names_any && bit & ARITH != 0 => continue,
            None => before.rflags & bit != 0,
        };
        if wanted != (after.rflags & bit != 0) {
            return Err(format!("{name} is {}", u8::from(!wanted)));
        }
    }
    for (key, value) in output {
        if let Some(at) = key.strip_prefix("m:") {
            let wanted = bytes(value);
            let mut found = vec![0; wanted.len()];
            memory.read(hex(at), &mut found).map_err(|e| e.to_string())?;
            if found != wanted {
                return Err(format!("memory at {at} is {found:02x?}"));
            }
        }
    }
    let rip = match output.get("rip") {
        Some(v) => v.strip_prefix('+').map_or_else(|| hex(v), |n| CODE + hex(n)),
        None => CODE + len,
    };
    if fault.is_none() && rip != after.rip {
        return Err(format!("rip is {:x}, wanted {rip:x}", after.rip));
    }
    Ok(())
}

#[test]
fn every_case_file() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut failures = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("the case files") {
        let path = entry.expect("a case file").path();
        let text = std::fs::read_to_string(&path).expect("a readable case file");
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            count += 1;
            for engine in ENGINES {
                if let Err(why) = check(line, engine) {
                    failures.push(format!("{}: {line}\n    {engine:?}: {why}", path.display()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {count} cases:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 50, "only {count} cases found");
}
