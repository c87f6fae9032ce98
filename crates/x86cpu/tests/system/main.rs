//! The privileged half through the public surface: tiny hand-assembled programs on a tiny machine.

mod apic;
mod hypercalls;
mod interrupts;
mod machine;
mod paging;
mod places;
mod saving;
mod smp;
mod strings;
mod threads;
