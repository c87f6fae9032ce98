//! A directory of FEX's tests: each of them interpreted and translated, held against what it expects and against
//! each other; and the count.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use arch::x86_64::regs::seg;
use arch::x86_64::state::VcpuState;
use iced_x86::{CpuidFeature, Decoder, DecoderOptions};
use x86cpu::Engine;

use crate::assemble::Assembler;
use crate::expected::Expected;
use crate::known;
use crate::machine::{End, Machine};

/// What the portable profile has of the features that tests name. FEX's `RAND` is RDRAND and RDSEED.
const FEATURES: [&str; 3] = ["SSSE3", "SSE4.1", "SSE4.2"];
/// The features that instructions may need, where the portable profile does not have them.
const LACKING: [CpuidFeature; 21] = [
    CpuidFeature::ADX,
    CpuidFeature::AES,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::CLFLUSHOPT,
    CpuidFeature::CLWB,
    CpuidFeature::CLZERO,
    CpuidFeature::D3NOW,
    CpuidFeature::D3NOWEXT,
    CpuidFeature::FMA,
    CpuidFeature::FSGSBASE,
    CpuidFeature::LZCNT,
    CpuidFeature::MOVBE,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::RDPID,
    CpuidFeature::SHA,
    CpuidFeature::SSE4A,
    CpuidFeature::VAES,
    CpuidFeature::XSAVE,
];
const HLT: u8 = 0xf4;
/// FEX's setting for x87 arithmetic in 64 bits instead of 80: its tests expect results that no processor gives.
const REDUCED_X87: &str = "FEX_X87REDUCEDPRECISION";
const GENERAL: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];
const ENGINES: [(&str, Engine); 2] =
    [("interpreted", Engine::Interpreter), ("translated", Engine::Jit { after: 0, longest: 64 })];

/// What came of a directory.
#[derive(Default)]
pub struct Report {
    /// Names of the tests that did what they expect on both engines, and the same.
    pub passed: Vec<String>,
    /// Why tests were not run, and how many.
    pub skipped: BTreeMap<String, usize>,
    /// Names of those that fail for a reason that `known` gives, and the reason.
    pub known: Vec<(String, &'static str)>,
    /// Names and differences of the others.
    pub failed: Vec<(String, String)>,
    /// Names of those that pass although `known` has them.
    pub surprising: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, why) in &self.failed {
            writeln!(f, "{name}: {why}")?;
        }
        for name in &self.surprising {
            writeln!(f, "{name}: passes, although it is in the list of those that cannot")?;
        }
        for (name, why) in &self.known {
            writeln!(f, "cannot pass: {name}: {why}")?;
        }
        for (why, count) in &self.skipped {
            writeln!(f, "skipped {count}: {why}")?;
        }
        let skipped: usize = self.skipped.values().sum();
        let (passed, failed, known) = (self.passed.len(), self.failed.len(), self.known.len());
        writeln!(f, "{known} cannot pass")?;
        writeln!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Runs the tests below `dir` whose path has `part` in it.
///
/// # Errors
/// Where the directory cannot be read, has no tests, or nasm is not there.
pub fn run(dir: &Path, part: &str) -> Result<Report> {
    let assembler = Assembler::new(dir)?;
    let mut sources = Vec::new();
    find(dir, &mut sources).with_context(|| format!("looking for tests in {}", dir.display()))?;
    ensure!(!sources.is_empty(), "{} has no .asm files", dir.display());
    sources.sort();
    let suite = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut report = Report::default();
    for path in sources {
        let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
        if !name.contains(part) {
            continue;
        }
        let source = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let outcome = one(&source, &assembler).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        match (outcome, known::reason(&suite, &name)) {
            (Outcome::Passed, None) => report.passed.push(name),
            (Outcome::Passed, Some(_)) => report.surprising.push(name),
            (Outcome::Skipped(why), _) => *report.skipped.entry(why).or_default() += 1,
            (Outcome::Failed(_), Some(why)) => report.known.push((name, why)),
            (Outcome::Failed(why), None) => report.failed.push((name, why)),
        }
    }
    Ok(report)
}

fn find(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "asm") {
            found.push(path);
        }
    }
    Ok(())
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

fn one(source: &str, assembler: &Assembler) -> Result<Outcome> {
    let expected = Expected::parse(source)?;
    if let Some(feature) = expected.features.iter().find(|name| !FEATURES.contains(&name.as_str())) {
        return Ok(Outcome::Skipped(format!("needs {feature}, which the portable profile does not have")));
    }
    if expected.settings.contains_key(REDUCED_X87) {
        return Ok(Outcome::Skipped("expects FEX's x87 of reduced precision".into()));
    }
    let code = assembler.assemble(source, expected.is_32_bit)?;
    let mut ends = Vec::new();
    for (how, engine) in ENGINES {
        let end = execute(&code, &expected, engine).with_context(|| how.to_owned())?;
        if let Some(why) = lacking(&end, expected.is_32_bit) {
            return Ok(Outcome::Skipped(why));
        }
        let differing = differences(&expected, &end);
        if !differing.is_empty() {
            return Ok(Outcome::Failed(format!("{how}: {}", differing.join(", "))));
        }
        ends.push(end.state);
    }
    if !same(&ends[0], &ends[1]) {
        return Ok(Outcome::Failed("interpreted and translated end differently".into()));
    }
    Ok(Outcome::Passed)
}

/// Runs code with the memory that it asks for.
///
/// # Errors
/// See [`Machine::run`] and [`Machine::map`].
pub fn execute(code: &[u8], expected: &Expected, engine: Engine) -> Result<End> {
    let mut machine = Machine::new(code, expected.is_32_bit, engine)?;
    for (at, len) in &expected.regions {
        machine.map(*at, *len, 7)?;
    }
    for (at, bytes) in &expected.data {
        machine.write(*at, bytes)?;
    }
    machine.run()
}

/// Why an invalid opcode is what the portable profile has there: the instruction is of a feature that it lacks.
fn lacking(end: &End, is_32_bit: bool) -> Option<String> {
    if end.vector != 6 {
        return None;
    }
    let bits = if is_32_bit { 32 } else { 64 };
    let insn = Decoder::new(bits, &end.code, DecoderOptions::NONE).decode();
    let feature = insn.cpuid_features().iter().find(|feature| LACKING.contains(feature))?;
    Some(format!("uses an instruction of {feature:?} without saying so"))
}

/// Whether two runs of the same code ended in the same state, time apart.
fn same(one: &VcpuState, other: &VcpuState) -> bool {
    let timeless = |state: &VcpuState| VcpuState { tsc: 0, ..state.clone() };
    timeless(one) == timeless(other)
}

/// What is not as expected, in words; nothing where all of it is.
pub fn differences(expected: &Expected, end: &End) -> Vec<String> {
    let mut differing = Vec::new();
    if end.vector != 13 || end.code.first() != Some(&HLT) {
        differing.push(format!("ended in exception {} at {:#x}", end.vector, end.state.rip));
        return differing;
    }
    for (name, parts) in &expected.registers {
        let Some(values) = register(name, &end.state) else {
            differing.push(format!("the register {name} is not known here"));
            continue;
        };
        for (i, (wanted, got)) in parts.iter().zip(values.iter().chain(std::iter::repeat(&0))).enumerate() {
            if wanted != got {
                differing.push(format!("{name}[{i}] is {got:#x} instead of {wanted:#x}"));
            }
        }
    }
    differing
}

/// A register's 64-bit parts. FEX numbers x87 registers as the hardware does, not from the top of their stack.
fn register(name: &str, state: &VcpuState) -> Option<Vec<u64>> {
    if let Some(i) = GENERAL.iter().position(|general| *general == name) {
        return Some(vec![state.gpr[i]]);
    }
    let word = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&state.fxsave[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    let number =
        |prefix: &str, count: usize| name.strip_prefix(prefix)?.parse::<usize>().ok().filter(|i| *i < count);
    if let Some(i) = number("XMM", 16) {
        return Some(vec![word(160 + 16 * i, 8), word(168 + 16 * i, 8)]);
    }
    if let Some(i) = number("MM", 8) {
        let top = (word(2, 2) as usize >> 11) & 7;
        let slot = (i + 8 - top) % 8;
        return Some(vec![word(32 + 16 * slot, 8), word(40 + 16 * slot, 2)]);
    }
    match name {
        "RIP" => Some(vec![state.rip]),
        "GS" => Some(vec![state.seg[seg::GS].base]),
        "FS" => Some(vec![state.seg[seg::FS].base]),
        _ => None,
    }
}
