//! The x86-64 guest: registers, CPUID template, MSRs, page-table words, saved vCPU state.
//!
//! Sources are cited as "SDM" (Intel 64 and IA-32 Architectures Software Developer's Manual) and
//! "APM" (AMD64 Architecture Programmer's Manual) with volume and section.

pub mod cpuid;
pub mod features;
pub mod hot;
pub mod msr;
pub mod paging;
pub mod regs;
pub mod state;
