//! Other projects' tests of an x86-64 CPU, run on the soft CPU. They stay outside of this tree: the program takes
//! the directory that they lie in.
//!
//! FEX's `unittests/ASM`: assembly with the registers that it must end with, as JSON in its first lines. `expected`
//! reads those, `assemble` has nasm make the code, `machine` runs it in user mode on the whole CPU, `suite` walks the
//! directory, compares and counts. `known` has those that cannot pass, with reasons. docs/conformance.md has the results.

pub mod assemble;
pub mod expected;
pub mod known;
pub mod machine;
pub mod suite;
