//! Which engine runs a machine, and why.

use std::str::FromStr;
use std::sync::OnceLock;

use hv::{EngineKind, Partition, PartitionConfig};
use serde::Serialize;

pub use hv_kvm::{KvmReport, remember_in as remember_kvm_in, works_well as kvm_works_well};

use crate::Error;

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// KVM where it works well, else soft.
    #[default]
    Auto,
    Soft,
    Kvm,
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "soft" => Ok(Self::Soft),
            "kvm" => Ok(Self::Kvm),
            _ => Err(format!("`{word}` is no engine; auto, soft or kvm")),
        }
    }
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineReport {
    pub engine: EngineKind,
    /// Why not KVM, for a person; empty when the user named the engine.
    pub why: String,
}

/// Decides; probes KVM when asked to choose.
pub fn choose(choice: EngineChoice) -> EngineReport {
    match choice {
        EngineChoice::Soft => EngineReport { engine: EngineKind::Soft, why: String::new() },
        EngineChoice::Kvm => EngineReport { engine: EngineKind::Kvm, why: String::new() },
        EngineChoice::Auto => probed().clone(),
    }
}

/// The probe runs guest code for some milliseconds: once a process.
fn probed() -> &'static EngineReport {
    static REPORT: OnceLock<EngineReport> = OnceLock::new();
    REPORT.get_or_init(|| match hv_kvm::works_well() {
        Ok(()) => EngineReport { engine: EngineKind::Kvm, why: String::new() },
        Err(why) => EngineReport { engine: EngineKind::Soft, why },
    })
}

/// Guest TSC frequency of a fresh machine on soft where no KVM tells one: a tick a nanosecond.
pub(crate) const SOFT_TSC_KHZ: u32 = 1_000_000;

/// The TSC frequency, in kHz, that a fresh machine gets on the chosen engine.
pub(crate) fn natural_tsc_khz(choice: EngineChoice) -> Result<u32, Error> {
    match choose(choice).engine {
        // The frequency of this host's KVM, where there is one, so that a machine made on soft can
        // resume on it also where KVM cannot scale; soft itself runs at any.
        EngineKind::Soft => Ok(hv_kvm::host_tsc_khz().unwrap_or(SOFT_TSC_KHZ)),
        EngineKind::Kvm => Ok(hv_kvm::host_tsc_khz()?),
    }
}

/// Makes a partition on the chosen engine.
pub(crate) fn partition(choice: EngineChoice, config: PartitionConfig) -> Result<Box<dyn Partition>, Error> {
    match choose(choice).engine {
        EngineKind::Soft => Ok(Box::new(hv_soft::SoftPartition::new(config)?)),
        EngineKind::Kvm => match hv_kvm::KvmPartition::new(config.clone()) {
            // A machine of another TSC rate, and no scaling here: soft runs at any.
            Err(hv::Error::Unsupported { .. }) if choice == EngineChoice::Auto => {
                Ok(Box::new(hv_soft::SoftPartition::new(config)?))
            }
            made => Ok(Box::new(made?)),
        },
    }
}

/// What this host's KVM is worth, in detail.
pub fn kvm_report() -> KvmReport {
    hv_kvm::report()
}
