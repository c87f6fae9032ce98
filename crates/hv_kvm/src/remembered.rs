//! What the probe found, kept between processes.
//!
//! Problem: a process starts a machine, and the probe takes longer than that. Strategy: the findings are written
//! beside the user's instances, with everything that they depend on: this boot of this kernel, this `/dev/kvm` (a
//! module that is loaded anew makes another node), this processor, this smolvm. Invariant: findings whose key is not
//! the present one, or that cannot be read, are as if there were none; a doubtful measurement is not kept.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::probe::Found;

/// Speeds between, in MIPS, are doubtful: a KVM that interprets does a few, one that does not does thousands, and
/// what is between was disturbed.
const DOUBTFUL: std::ops::Range<f64> = 20.0..500.0;
/// More bytes are not ours.
const MAX_LEN: u64 = 64 << 10;

static PLACE: OnceLock<PathBuf> = OnceLock::new();

/// Keeps the probe's findings in this file, in a directory that only this user can write to. Until it is called every
/// process looks for itself.
pub fn remember_in(path: PathBuf) {
    let _ = PLACE.set(path);
}

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    found: Found,
}

pub(crate) fn read() -> Option<Found> {
    read_from(PLACE.get()?, &key()?)
}

/// Best effort: a file that cannot be written costs time at the next start.
pub(crate) fn write(found: &Found) {
    if let (Some(place), Some(key)) = (PLACE.get(), key()) {
        write_to(place, &key, found);
    }
}

fn read_from(place: &Path, key: &str) -> Option<Found> {
    if fs::metadata(place).ok()?.len() > MAX_LEN {
        return None;
    }
    let kept: Kept = serde_json::from_slice(&fs::read(place).ok()?).ok()?;
    (kept.key == key).then_some(kept.found)
}

fn write_to(place: &Path, key: &str, found: &Found) {
    if DOUBTFUL.contains(&found.supervisor_mips) {
        return;
    }
    let Ok(text) = serde_json::to_vec(&Kept { key: key.to_owned(), found: found.clone() }) else { return };
    let temp = place.with_extension(format!("new-{}", std::process::id()));
    if fs::write(&temp, text).and_then(|()| fs::rename(&temp, place)).is_err() {
        let _ = fs::remove_file(&temp);
    }
}

/// Everything that the findings depend on; `None` when it cannot be told.
fn key() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let device = fs::metadata("/dev/kvm").ok()?;
    let node = [device.dev(), device.ino(), device.rdev(), device.ctime() as u64, device.ctime_nsec() as u64];
    // Signature and name (SDM vol. 2, CPUID, leaves 1 and 0x80000002 to 0x80000004).
    let leaves = [1, 0x8000_0002, 0x8000_0003, 0x8000_0004].map(std::arch::x86_64::__cpuid);
    // Leaf 1's EBX has the number of the processor that was asked.
    let processor = leaves.map(|leaf| (leaf.eax, leaf.ecx, leaf.edx));
    Some(format!("{} {} {node:?} {processor:x?}", env!("CARGO_PKG_VERSION"), boot.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Abilities;

    fn found(supervisor_mips: f64) -> Found {
        Found {
            abilities: Abilities {
                host_khz: 2_450_000,
                time_travels: true,
                dirty_log: true,
                system_call: true,
            },
            refusal: None,
            supervisor_mips,
            cpuid_governed: true,
            kernel_cpuid_governed: true,
            xgetbv_governed: true,
            avx_governed: true,
            tsc_reads: [true; 3],
            scaling: true,
        }
    }

    #[test]
    fn findings_hold_for_their_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("kvm.json");
        assert!(read_from(&place, "a").is_none());
        write_to(&place, "a", &found(3000.0));
        assert_eq!(read_from(&place, "a").unwrap().abilities.host_khz, 2_450_000);
        assert!(read_from(&place, "another boot").is_none());
        // A disturbed measurement does not take the place of a good one.
        write_to(&place, "a", &found(100.0));
        assert_eq!(read_from(&place, "a").unwrap().supervisor_mips, 3000.0);
        for bytes in [&b"{}"[..], b"", b"\xff\xff", &[b' '; 70_000]] {
            fs::write(&place, bytes).unwrap();
            assert!(read_from(&place, "a").is_none());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn the_key_does_not_change_by_itself() {
        assert_eq!(key(), key());
    }
}
