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
