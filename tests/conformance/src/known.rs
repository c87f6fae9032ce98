//! FEX's tests that cannot pass here, with the reason: a processor without the feature, or a real one, does otherwise.
//! (FEX has lists of its own for runs on the host, `Disabled_Tests*` and `Known_Failures*`; most of these are there.)

/// Directory and name, and why.
pub const KNOWN: &[(&str, &str)] = &[
    ("ASM/FEX_bugs/32bit_syscall.asm", NEEDS_LINUX),
    ("32Bit_ASM/FEX_bugs/InlineSyscall.asm", NEEDS_LINUX),
    ("ASM/TwoByte/0F_02.asm", NEEDS_LINUX),
    ("ASM/Primary/Primary_8C.asm", UNCHECKED),
    ("ASM/Primary/Primary_8C_2.asm", UNCHECKED),
    ("32Bit_ASM/Primary/Pop_Segments.asm", UNCHECKED),
    ("ASM/Primary/Primary_E8.asm", NEAR_16),
    ("ASM/Primary/Primary_E9.asm", NEAR_16),
    ("ASM/PrimaryGroup/5_FF_05.asm", FAR_64),
    ("ASM/PrimaryGroup/5_FF_05_03_o64.asm", FAR_64),
    ("ASM/PrimaryGroup/5_FF_05_03_o64_imm.asm", FAR_64),
    ("ASM/REP/F3_BD.asm", LZCNT),
    ("ASM/REP/F3_BD_2.asm", LZCNT),
    ("ASM/REP/F3_BD_3.asm", LZCNT),
    ("ASM/REP/F3_BD_4.asm", LZCNT),
    ("ASM/Secondary/07_XX_00.asm", UMIP),
    ("32Bit_ASM/Secondary/07_XX_00.asm", UMIP),
    ("ASM/Secondary/07_XX_04.asm", UMIP),
    ("ASM/X87/D9_F2.asm", "the last bit of FPTAN, which processors differ in"),
    ("32Bit_ASM/X87/D9_F2.asm", "the last bit of FPTAN, which processors differ in"),
    ("ASM/X87/D9_F9.asm", "FYL2XP1 outside of its range, where the result is undefined"),
    ("32Bit_ASM/X87/D9_F9.asm", "FYL2XP1 outside of its range, where the result is undefined"),
    (
        "ASM/X87/FXAM_Simple.asm",
        "expects FEX's answer for zero; its comment has the processor's, which is ours",
    ),
    (
        "ASM/X87/X87MMXInteraction.asm",
        "expects that FNSAVE stores no tags of zeros and special values; processors do",
    ),
];

const NEEDS_LINUX: &str = "makes a system call, and there is no Linux below it";
const UNCHECKED: &str = "loads selectors without a descriptor, which FEX does not check";
const NEAR_16: &str =
    "a near branch of 16 bits, which AMD has in 64-bit mode; the portable profile is Intel's";
const FAR_64: &str = "a far pointer of 32 bits with REX.W, as AMD reads it; Intel reads 64 bits";
const LZCNT: &str = "LZCNT, which without that feature is BSR";
const UMIP: &str = "expects what Linux puts in place of the instruction where the processor has UMIP";

/// Why a test cannot pass, if it is one of those. `suite` is the name of its directory.
pub fn reason(suite: &str, name: &str) -> Option<&'static str> {
    let found = KNOWN
        .iter()
        .find(|(path, _)| path.strip_prefix(suite).and_then(|p| p.strip_prefix('/')) == Some(name));
    found.map(|(_, why)| *why)
}
