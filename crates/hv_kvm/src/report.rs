//! What `smolvm doctor` says about KVM.

use hv::Error;
use kvm_ioctls::Cap;
use serde::Serialize;

use crate::probe::{self, Found};
use crate::vm::open;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact {
    pub name: &'static str,
    /// Whether it is as the engine wants it.
    pub good: bool,
    /// What was found.
    pub value: String,
    /// What it means, in one line.
    pub explanation: &'static str,
}

/// The KVM of this host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KvmReport {
    /// `auto` takes KVM.
    pub recommended: bool,
    /// Why not; empty when it is.
    pub reason: String,
    pub facts: Vec<Fact>,
    /// Million instructions a second in the guest's kernel mode, when it could be measured.
    pub supervisor_mips: Option<f64>,
    /// TSC frequency in kHz that guests get unscaled.
    pub tsc_khz: Option<u32>,
}

/// Facts without which a machine is refused (but for the first two, `--force-template` overrules that).
const NEEDED: [&str; 7] = ["device", "capabilities", "kernel_cpuid", "system_call", "cpuid", "xgetbv", "avx"];

impl KvmReport {
    /// What stands in the way of a machine here, each fact by itself.
    pub fn refusals(&self) -> impl Iterator<Item = &Fact> {
        self.facts.iter().filter(|fact| !fact.good && NEEDED.contains(&fact.name))
    }

    /// Whether machines from hosts with another TSC rate run here.
    pub fn scales_tsc(&self) -> bool {
        self.facts.iter().any(|fact| fact.name == "tsc_scaling" && fact.good)
    }
}

/// Looks at everything; takes some ten milliseconds and never fails: what cannot be found out is a fact.
pub fn report() -> KvmReport {
    let mut facts = Vec::new();
    let reason = probe::works_well().err().unwrap_or_default();
    let kvm = match open() {
        Ok(kvm) => kvm,
        Err(error) => {
            facts.push(device(&Err(error)));
            return KvmReport { recommended: false, reason, facts, supervisor_mips: None, tsc_khz: None };
        }
    };
    facts.push(device(&Ok(())));
    facts.push(Fact {
        name: "api_version",
        good: kvm.get_api_version() == 12,
        value: kvm.get_api_version().to_string(),
        explanation: "the version of the interface; there has only ever been 12",
    });
    facts.push(Fact {
        name: "hardware",
        good: probe::has_virtualisation(),
        value: if probe::has_virtualisation() { "VMX or SVM" } else { "neither VMX nor SVM" }.into(),
        explanation: "without it KVM is a software one, and the soft engine is better",
    });
    let lacking = probe::lacking(&kvm);
    facts.push(Fact {
        name: "capabilities",
        good: lacking.is_ok(),
        value: lacking.map_or_else(|e| e.to_string(), |()| "all that are needed".into()),
        explanation: "what the engine cannot do without",
    });
    facts.push(Fact {
        name: "xsave",
        good: true,
        value: yes(kvm.check_extension(Cap::Xsave)),
        explanation: "floating-point state is exchanged whole; without it in the older form",
    });
    let mut mips = None;
    let found = probe::found();
    if let Ok(found) = &found {
        mips = Some(probe::steady_speed().unwrap_or(found.supervisor_mips));
        facts.extend(found_facts(found, mips.unwrap_or_default()));
    }
    let tsc_khz = found.ok().map(|found| found.abilities.host_khz);
    KvmReport { recommended: reason.is_empty(), reason, facts, supervisor_mips: mips, tsc_khz }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.into()
}

fn device(opened: &Result<(), Error>) -> Fact {
    let there = std::path::Path::new("/dev/kvm").exists();
    Fact {
        name: "device",
        good: opened.is_ok(),
        value: match (opened, there) {
            (Ok(()), _) => "/dev/kvm opens".into(),
            (Err(error), true) => error.to_string(),
            (Err(_), false) => "there is no /dev/kvm".into(),
        },
        explanation: "without it, or without the right to open it (group kvm), the soft engine is used",
    }
}

fn found_facts(found: &Found, mips: f64) -> Vec<Fact> {
    let [by_kvm, ring0, ring3] = found.tsc_reads;
    let governed = |name, good: bool, explanation| Fact {
        name,
        good,
        value: if good { "governed".into() } else { "the host's shows through".into() },
        explanation,
    };
    vec![
        Fact {
            name: "supervisor_speed",
            good: found.supervisor_mips >= 200.0,
            value: format!("{mips:.1} MIPS"),
            explanation: "kernel code at processor speed; a few MIPS mean that it is interpreted",
        },
        governed(
            "kernel_cpuid",
            found.kernel_cpuid_governed,
            "the guest's kernel uses only what exists everywhere",
        ),
        Fact {
            name: "system_call",
            good: found.abilities.system_call,
            value: if found.abilities.system_call { "enters ring 0" } else { "stays in ring 3" }.into(),
            explanation: "programs in the guest reach its kernel; where not, they are taken there, slowly",
        },
        governed(
            "cpuid",
            found.cpuid_governed,
            "programs in the guest see the machine's CPU, not the host's",
        ),
        governed("xgetbv", found.xgetbv_governed, "programs find no AVX state that a snapshot would lose"),
        governed("avx", found.avx_governed, "instructions outside of the template do not work in the guest"),
        Fact {
            name: "tsc_set",
            good: found.abilities.time_travels,
            value: format!("by KVM: {}, ring 0: {}, ring 3: {}", yes(by_kvm), yes(ring0), yes(ring3)),
            explanation: "the saved time stamp counter goes on after a resume, as each of them reads it",
        },
        Fact {
            name: "tsc_khz",
            good: found.abilities.host_khz != 0,
            value: format!("{} kHz", found.abilities.host_khz),
            explanation: "machines made here count time at this rate",
        },
        Fact {
            name: "tsc_scaling",
            good: found.scaling,
            value: yes(found.scaling),
            explanation: "machines from hosts with another rate resume on this engine, else on soft",
        },
        Fact {
            name: "dirty_log",
            good: found.abilities.dirty_log,
            value: if found.abilities.dirty_log {
                "tells what was written".into()
            } else {
                "misses a write".into()
            },
            explanation: "a snapshot of a running machine holds what it changed",
        },
    ]
}
