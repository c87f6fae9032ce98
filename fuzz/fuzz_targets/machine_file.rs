//! Any bytes as a machine file: a problem, or a file that keeps its promises.
#![no_main]

mod probe;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| probe::probe(bytes));
