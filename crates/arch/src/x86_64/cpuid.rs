//! CPUID leaves and the versioned CPU template (DESIGN.md §3: the template is ABI).

use serde::{Deserialize, Serialize};

/// One answer of the CPUID instruction (SDM vol. 2, CPUID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    pub leaf: u32,
    /// `None`: the leaf does not depend on ECX.
    pub subleaf: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Version of the `portable` template. What a version answers never changes: a snapshot names the
/// version that its guest saw.
pub const PORTABLE_VERSION: u32 = 1;

/// Physical address bits of the `portable` template: what the smallest hosts with hardware
/// virtualisation have, so that a guest address is possible everywhere.
pub const PORTABLE_PHYS_BITS: u32 = 39;

/// Frequency in kHz at which the local APIC timer counts on every engine (KVM's fixed 1 GHz).
pub const APIC_BUS_KHZ: u32 = 1_000_000;

const fn leaf(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf { leaf, subleaf: None, eax, ebx, ecx, edx }
}

const fn sub(number: u32, subleaf: u32, regs: [u32; 4]) -> CpuidLeaf {
    CpuidLeaf { subleaf: Some(subleaf), ..leaf(number, regs) }
}

/// Four letters as a register holds them.
const fn text(letters: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*letters)
}

const fn bits(list: &[u32]) -> u32 {
    let mut out = 0;
    let mut i = 0;
    while i < list.len() {
        out |= 1 << list[i];
        i += 1;
    }
    out
}

/// Family 6, model 0x1c, stepping 10. The vendor is Intel, since Linux then touches the fewest MSRs
/// (none of c001xxxx); the model is one that does not speculate, so that a kernel with all
/// mitigations built in turns none on (page-table isolation and retpolines would cost the soft engine
/// most), and one for which Linux has no quirk at this stepping.
const SIGNATURE: u32 = 0x0001_06ca;

/// FPU DE PSE TSC MSR PAE CX8 APIC PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2. Not there, because
/// nothing behind it exists on every engine: VME, MCE, SEP, MTRR, MCA.
const LEAF1_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
/// HTT: the logical-processor count of EBX is valid.
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// SSE3 SSSE3 CX16 SSE4.1 SSE4.2 x2APIC POPCNT TSC-deadline RDRAND hypervisor.
const LEAF1_ECX: u32 = bits(&[0, 9, 13, 19, 20, 21, 23, 24, 30, 31]);
/// CLFLUSH line of 64 bytes, in units of 8.
const CLFLUSH_LINE: u32 = 8 << 8;
/// ARAT: the APIC timer runs in all sleep states.
const LEAF6_EAX: u32 = 1 << 2;
/// ERMS: a hint to use REP MOVSB and REP STOSB, true nowhere more than in an interpreter and right on
/// any processor. FSGSBASE, SMEP, SMAP, INVPCID and the BMI and AVX families are not in x86-64-v2.
const LEAF7_EBX: u32 = 1 << 9;
/// FSRM, and in subleaf 1 fast short REP STOSB: the same hint for short strings.
const LEAF7_EDX: u32 = 1 << 4;
const LEAF7_1_EAX: u32 = 1 << 11;
/// SYSCALL NX RDTSCP LM; no 1 GiB pages.
const LEAF_EXT1_EDX: u32 = bits(&[11, 20, 27, 29]);
/// LAHF in 64-bit mode.
const LEAF_EXT1_ECX: u32 = 1;
/// CLOCKSOURCE2 and CLOCKSOURCE_STABLE_BIT (KVM: Documentation/virt/kvm/x86/cpuid.rst); no other
/// paravirtual feature, since the soft engine would have to mimic each.
const KVM_FEATURES: u32 = bits(&[3, 24]);

/// The `portable` template for a machine of `vcpus` processors (1 to 255) and a guest TSC of
/// `tsc_khz`: x86-64-v2, FXSAVE only, kvmclock and TSC-deadline, no invariant TSC. Answers of vCPU 0;
/// see [`for_vcpu`].
pub fn portable(vcpus: u32, tsc_khz: u32) -> Vec<CpuidLeaf> {
    let vcpus = vcpus.clamp(1, 255);
    // Bits of an APIC id that number the cores of the one package.
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    let ids = 1 << core_bits;
    let htt = if vcpus > 1 { LEAF1_EDX_HTT } else { 0 };
    let mut out = vec![
        leaf(0, [0xb, text(b"Genu"), text(b"ntel"), text(b"ineI")]),
        leaf(1, [SIGNATURE, CLFLUSH_LINE | (ids & 0xff) << 16, LEAF1_ECX, LEAF1_EDX | htt]),
        // Descriptor 0xff: the caches are told by leaf 4.
        leaf(2, [0xff01, 0, 0, 0]),
    ];
    out.extend(caches(ids));
    out.extend([
        leaf(6, [LEAF6_EAX, 0, 0, 0]),
        sub(7, 0, [1, LEAF7_EBX, 0, LEAF7_EDX]),
        sub(7, 1, [LEAF7_1_EAX, 0, 0, 0]),
        sub(0xb, 0, [0, 1, 1 << 8, 0]),
        sub(0xb, 1, [core_bits, vcpus, 2 << 8 | 1, 0]),
        leaf(0x4000_0000, [0x4000_0010, text(b"KVMK"), text(b"VMKV"), text(b"M\0\0\0")]),
        leaf(0x4000_0001, [KVM_FEATURES, 0, 0, 0]),
        leaf(0x4000_0010, [tsc_khz, APIC_BUS_KHZ, 0, 0]),
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, LEAF_EXT1_ECX, LEAF_EXT1_EDX]),
    ]);
    out.extend(brand(b"smolvm portable CPU v1"));
    out.extend([
        // L2: 1 MiB, 16 ways, 64-byte lines.
        leaf(0x8000_0006, [0, 0, 1024 << 16 | 8 << 12 | 64, 0]),
        leaf(0x8000_0007, [0; 4]),
        leaf(0x8000_0008, [PORTABLE_PHYS_BITS | 48 << 8, 0, 0, 0]),
    ]);
    out
}

/// Leaf 4: 32 KiB L1 for data and for instructions, 1 MiB L2, each of one core.
fn caches(ids: u32) -> [CpuidLeaf; 4] {
    let cache = |kind: u32, level: u32, ways: u32, sets: u32| {
        let eax = kind | level << 5 | 1 << 8 | ((ids - 1) & 0x3f) << 26;
        [eax, 63 | (ways - 1) << 22, sets - 1, 0]
    };
    [
        sub(4, 0, cache(1, 1, 8, 64)),
        sub(4, 1, cache(2, 1, 8, 64)),
        sub(4, 2, cache(3, 2, 16, 1024)),
        sub(4, 3, [0; 4]),
    ]
}

/// Leaves 0x80000002 to 4: the name, padded with zeros.
fn brand(name: &[u8]) -> [CpuidLeaf; 3] {
    let mut padded = [0; 48];
    let len = name.len().min(47);
    padded[..len].copy_from_slice(&name[..len]);
    let word = |at: usize| u32::from_le_bytes([padded[at], padded[at + 1], padded[at + 2], padded[at + 3]]);
    std::array::from_fn(|i| {
        let at = i * 16;
        leaf(0x8000_0002 + i as u32, [word(at), word(at + 4), word(at + 8), word(at + 12)])
    })
}

/// The leaves as the vCPU with this APIC id sees them (leaf 1 EBX 31:24, leaf 0xb EDX).
pub fn for_vcpu(leaves: &[CpuidLeaf], apic_id: u32) -> Vec<CpuidLeaf> {
    let patch = |mut leaf: CpuidLeaf| {
        match leaf.leaf {
            1 => leaf.ebx = (leaf.ebx & 0x00ff_ffff) | apic_id << 24,
            0xb => leaf.edx = apic_id,
            _ => {}
        }
        leaf
    };
    leaves.iter().copied().map(patch).collect()
}

/// What CPUID answers for EAX and ECX; zeros where there is no leaf. Beyond the levels of leaf 0xb
/// only the level number and the APIC id are told (SDM vol. 2, CPUID).
pub fn lookup(leaves: &[CpuidLeaf], eax: u32, ecx: u32) -> CpuidLeaf {
    let fits = |l: &&CpuidLeaf| l.leaf == eax && l.subleaf.is_none_or(|s| s == ecx);
    if let Some(found) = leaves.iter().find(fits) {
        return *found;
    }
    let mut none = CpuidLeaf { subleaf: Some(ecx), ..leaf(eax, [0; 4]) };
    if eax == 0xb
        && let Some(level) = leaves.iter().find(|l| l.leaf == 0xb)
    {
        none.ecx = ecx & 0xff;
        none.edx = level.edx;
    }
    none
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 1, pinned: a difference needs version 2.
    #[test]
    fn version_1_answers_what_it_always_answered() {
        let leaves = portable(4, 2_000_000);
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for l in &leaves {
            for word in [l.leaf, l.subleaf.unwrap_or(u32::MAX), l.eax, l.ebx, l.ecx, l.edx] {
                hash = (hash ^ u64::from(word)).wrapping_mul(0x100_0000_01b3);
            }
        }
        assert_eq!((PORTABLE_VERSION, hash), (1, 215_758_397_083_609_283));
    }

    #[test]
    fn every_vcpu_finds_its_own_apic_id() {
        let leaves = for_vcpu(&portable(4, 1_000_000), 3);
        assert_eq!(lookup(&leaves, 1, 0).ebx >> 24, 3);
        for level in [0, 1, 2, 9] {
            assert_eq!(lookup(&leaves, 0xb, level).edx, 3, "level {level}");
        }
        assert_eq!(lookup(&leaves, 0xb, 9).ecx, 9);
    }

    #[test]
    fn it_is_x86_64_v2_without_what_does_not_travel() {
        let leaves = portable(1, 1_000_000);
        let one = lookup(&leaves, 1, 0);
        for bit in [0, 9, 13, 19, 20, 23] {
            assert_ne!(one.ecx & 1 << bit, 0, "leaf 1 ECX bit {bit}");
        }
        assert_eq!(one.ecx & (1 << 26 | 1 << 28), 0, "neither XSAVE nor AVX");
        assert_eq!(lookup(&leaves, 0x8000_0007, 0).edx, 0, "no invariant TSC");
        assert_eq!(lookup(&leaves, 0x15, 0).eax, 0);
        assert_ne!(lookup(&leaves, 0x8000_0001, 0).ecx & 1, 0, "LAHF");
    }
}
