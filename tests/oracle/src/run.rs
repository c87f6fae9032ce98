//! The loop over cases: generate, run both, compare, count.

use std::collections::BTreeMap;

use x86cpu::Engine;

use crate::case::End;
use crate::catalogue;
use crate::compare;
use crate::generate;
use crate::machine::Machine;
use crate::native::{Native, Unavailable};
use crate::rng::Rng;
use crate::sequence;
use crate::soft;

/// Everything is translated before it runs the first time.
pub const TRANSLATE_ALL: Engine = Engine::Jit { after: 0, longest: 64 };

/// What to run.
pub struct Options {
    pub cases: u64,
    pub seed: u64,
    /// Mnemonic to stay with, lower case.
    pub only: Option<String>,
    /// x87, MMX and SSE only, over the FPU without the rest of the CPU.
    pub fpu_only: bool,
    /// Every n-th case is a sequence of instructions; 0: none.
    pub sequences: u64,
    /// How the soft CPU executes.
    pub engine: Engine,
    /// Differing cases kept as text.
    pub keep: usize,
}

/// Per mnemonic.
#[derive(Default, Clone, Copy)]
pub struct Count {
    pub cases: u64,
    pub faults: u64,
    pub differ: u64,
    /// x86cpu does not know the form.
    pub unknown: u64,
}

/// What came of it.
pub struct Report {
    pub counts: BTreeMap<String, Count>,
    pub differing: Vec<String>,
    pub lacking: Vec<&'static str>,
}

impl Report {
    pub fn total(&self, f: impl Fn(&Count) -> u64) -> u64 {
        self.counts.values().map(f).sum()
    }
}

/// Runs the cases on both sides.
///
/// # Errors
/// [`Unavailable`] on a host without an oracle.
pub fn run(options: &Options) -> Result<Report, Unavailable> {
    let mut native = Native::new()?;
    let mut machine = Machine::new(options.engine);
    let (mut entries, lacking) = catalogue::entries();
    if let Some(only) = &options.only {
        entries.retain(|e| format!("{:?}", e.code.mnemonic()).to_lowercase() == *only);
    }
    let mixed = sequence::pool(&entries);
    let mut report = Report { counts: BTreeMap::new(), differing: Vec::new(), lacking };
    if entries.is_empty() {
        return Ok(report);
    }
    let mut rng = Rng(options.seed);
    let mut done = 0;
    let (mut k, mut singles) = (0, 0);
    while done < options.cases && k < options.cases.saturating_mul(4) {
        let together = options.sequences != 0 && k.is_multiple_of(options.sequences);
        let entry = entries[(singles % entries.len() as u64) as usize];
        k += 1;
        singles += u64::from(!together);
        let mut own = Rng(rng.draw());
        let case = match together {
            true => sequence::case(&mut own, &mixed),
            false => generate::case(&mut own, entry.code),
        };
        let Some(case) = case else { continue };
        let insn = soft::decode(&case);
        if !together && insn.code() != entry.code {
            // Near branches with a 16-bit operand size: AMD has them, Intel and we do not.
            continue;
        }
        let name =
            if together { "(sequence)".into() } else { format!("{:?}", insn.mnemonic()).to_lowercase() };
        let count = report.counts.entry(name).or_default();
        done += 1;
        count.cases += 1;
        let ours = if options.fpu_only { soft::run_fpu(&case) } else { machine.run(&case) };
        if ours.end == End::Unknown {
            count.unknown += 1;
            continue;
        }
        let host = native.run(&case);
        if matches!(host.end, End::Vector(_)) {
            count.faults += 1;
        }
        let text = compare::differences(&case, &insn, &host, &ours);
        if !text.is_empty() {
            count.differ += 1;
            let per = report.differing.len();
            if per < options.keep && count.differ <= 3 {
                report.differing.push(format!("{:?} {}\n{text}", insn.code(), compare::line(&case)));
            }
        }
    }
    Ok(report)
}
