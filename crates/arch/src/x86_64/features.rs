//! Names of what CPUID offers, as Linux spells them (SDM vol. 2, CPUID; KVM: cpuid.rst): to say what
//! a machine needs and what an engine lacks.

use super::cpuid::{CpuidLeaf, lookup};

/// A register of a CPUID answer.
#[derive(Clone, Copy)]
enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Leaf, subleaf, register, and the names of its bits from the lowest, `-` where there is none.
type Word = (u32, u32, Reg, &'static str);

const WORDS: [Word; 10] = [
    (
        1,
        0,
        Reg::Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - ds acpi mmx \
         fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (
        1,
        0,
        Reg::Ecx,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca \
         sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    (6, 0, Reg::Eax, "dtherm ida arat"),
    (
        7,
        0,
        Reg::Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds \
         mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er \
         avx512cd sha_ni avx512bw avx512vl",
    ),
    (
        7,
        0,
        Reg::Ecx,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
         avx512_bitalg tme avx512_vpopcntdq - la57",
    ),
    (7, 0, Reg::Edx, "- - avx512_4vnniw avx512_4fmaps fsrm uintr"),
    (7, 1, Reg::Eax, "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc"),
    (
        0x8000_0001,
        0,
        Reg::Edx,
        "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext \
         3dnow",
    ),
    (
        0x8000_0001,
        0,
        Reg::Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit \
         wdt - lwp fma4 tce - nodeid_msr - tbm topoext",
    ),
    (
        0x4000_0001,
        0,
        Reg::Eax,
        "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvmclock kvm_async_pf kvm_steal_time kvm_pv_eoi \
         kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control \
         kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id - - - - - - - - kvmclock_stable",
    ),
];

fn word(leaves: &[CpuidLeaf], (leaf, subleaf, reg, _): Word) -> u32 {
    let found = lookup(leaves, leaf, subleaf);
    match reg {
        Reg::Eax => found.eax,
        Reg::Ebx => found.ebx,
        Reg::Ecx => found.ecx,
        Reg::Edx => found.edx,
    }
}

fn names(bits: u32, word: Word) -> impl Iterator<Item = String> {
    let known: Vec<&str> = word.3.split_whitespace().collect();
    (0..32).filter(move |bit| bits & 1 << bit != 0).map(move |bit| match known.get(bit as usize) {
        Some(name) if *name != "-" => (*name).to_owned(),
        // A bit without a name still has to be named.
        _ => format!("cpuid_{:x}_{}_bit{bit}", word.0, ["eax", "ebx", "ecx", "edx"][word.2 as usize]),
    })
}

/// What these leaves offer, by name.
pub fn offered(leaves: &[CpuidLeaf]) -> Vec<String> {
    WORDS.iter().flat_map(|w| names(word(leaves, *w), *w)).collect()
}

/// What `wanted` offers and `had` does not, by name.
pub fn missing(wanted: &[CpuidLeaf], had: &[CpuidLeaf]) -> Vec<String> {
    WORDS.iter().flat_map(|w| names(word(wanted, *w) & !word(had, *w), *w)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86_64::cpuid::portable;

    #[test]
    fn the_portable_template_by_name() {
        let names = offered(&portable(1, 1_000_000));
        for name in [
            "fpu", "sse2", "sse4_2", "popcnt", "cx16", "lahf_lm", "syscall", "nx", "rdtscp", "lm", "kvmclock",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} of {names:?}");
        }
        for name in ["avx", "xsave", "smep", "pdpe1gb"] {
            assert!(!names.iter().any(|n| n == name), "{name}");
        }
        assert!(!names.iter().any(|n| n.starts_with("cpuid_")), "{names:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let had = portable(1, 1_000_000);
        let mut wanted = portable(2, 2_000_000);
        assert_eq!(missing(&wanted, &had), ["ht"]);
        for leaf in &mut wanted {
            match (leaf.leaf, leaf.subleaf) {
                (1, _) => (leaf.ecx, leaf.edx) = (leaf.ecx | 1 << 28, leaf.edx & !(1 << 28)),
                (7, Some(0)) => leaf.ebx |= 1 << 5 | 1 << 22,
                _ => {}
            }
        }
        assert_eq!(missing(&wanted, &had), ["avx", "avx2", "cpuid_7_ebx_bit22"]);
    }
}
