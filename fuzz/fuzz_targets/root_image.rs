//! A root image of another writer: read or refused, and what was read can be written again.
#![no_main]

use std::sync::Arc;

use image::{ErofsOptions, Limits, read_erofs, write_erofs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let image = Arc::new(bytes.to_vec());
    let limits = Limits { entries: 1000, bytes: 1 << 20, xattr_bytes: 4096 };
    let Ok(tree) = read_erofs(image, limits) else { return };
    let options = ErofsOptions { uuid: [0; 16], build_time: Default::default() };
    let mut again = Vec::new();
    if write_erofs(&tree, &mut again, &options).is_ok() {
        let back = read_erofs(Arc::new(again), limits).expect("our own image can be read");
        assert_eq!(back.digest().ok(), tree.digest().ok());
    }
});
