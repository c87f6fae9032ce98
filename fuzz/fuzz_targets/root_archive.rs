//! A root from an archive: compressed or not, a tar or nothing of the kind.
#![no_main]

use image::archive::{Unpacker, apply_tar, decompress};
use image::tree::OnSymlink;
use image::{Limits, Spool, Tree};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = std::env::temp_dir();
    let Ok(spool) = Spool::new(&dir, 1 << 20) else { return };
    let mut tree = Tree::new(Limits { entries: 1000, bytes: 1 << 20, xattr_bytes: 4096 });
    let Ok(plain) = decompress(bytes) else { return };
    let mut into = Unpacker { tree: &mut tree, spool: &spool, on_symlink: OnSymlink::Keep };
    let _ = apply_tar(plain, &mut into);
    // Whatever came in is a whole tree.
    assert!(tree.entries() <= 1000 && tree.bytes() <= 1 << 20);
    tree.digest().expect("what was spooled can be read");
});
