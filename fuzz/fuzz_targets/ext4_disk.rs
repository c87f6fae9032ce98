//! A disk that a guest wrote: read, left to a kernel, or refused.
#![no_main]

use std::sync::{Arc, OnceLock};

use image::tree::Time;
use image::{Limits, MergeOptions, Spool, Tree, merge_upper_of_disk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static SPOOL: OnceLock<Spool> = OnceLock::new();
    let spool = SPOOL.get_or_init(|| Spool::new(&std::env::temp_dir(), 64 << 20).expect("spool"));
    let limits = Limits { entries: 1000, bytes: 1 << 20, xattr_bytes: 4096 };
    let options = MergeOptions { epoch: Time::from_secs(i64::MAX), settle: false };
    let _ = merge_upper_of_disk(Tree::new(limits), Arc::new(bytes.to_vec()), spool, &options);
});
