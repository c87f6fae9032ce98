//! `smolvm doctor --selftest`: the engines of this host against each other.

use hv::{EngineKind, Error as EngineError, Partition, PartitionConfig};
use serde::Serialize;

use hv_kvm::selftest::{Factory, Leg};

/// TSC rate of the test where no KVM tells one.
const SOFT_KHZ: u32 = 1_000_000;

/// What was tried, and what could not be.
#[derive(Clone, Debug, Serialize)]
pub struct SelfTest {
    pub passed: bool,
    pub tsc_khz: u32,
    /// A computation in ring 3, moved eight times with a timer armed, for each pair of engines.
    pub legs: Vec<Leg>,
    pub skipped: Vec<Skipped>,
}

/// Something that was not tried.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    pub what: &'static str,
    pub why: String,
}

/// Runs the matrix over the engines that work here at all; some seconds at most.
pub fn selftest() -> SelfTest {
    let soft = |c: PartitionConfig| -> Result<Box<dyn Partition>, EngineError> {
        Ok(Box::new(hv_soft::SoftPartition::new(c)?))
    };
    let kvm = |c: PartitionConfig| -> Result<Box<dyn Partition>, EngineError> {
        Ok(Box::new(hv_kvm::KvmPartition::new(c)?))
    };
    let mut engines: Vec<(EngineKind, Factory<'_>)> = vec![(EngineKind::Soft, &soft)];
    let mut skipped = Vec::new();
    let khz = match hv_kvm::host_tsc_khz() {
        Ok(khz) => {
            engines.push((EngineKind::Kvm, &kvm));
            if let Err(why) = hv_kvm::works_well() {
                let what = "machines on kvm that see no more than the CPU template (the check was forced)";
                skipped.push(Skipped { what, why });
            }
            khz
        }
        Err(why) => {
            skipped.push(Skipped { what: "every pair with kvm", why: why.to_string() });
            SOFT_KHZ
        }
    };
    let matrix = hv_kvm::selftest::run(&engines, khz);
    SelfTest { passed: matrix.passed, tsc_khz: khz, legs: matrix.legs, skipped }
}
