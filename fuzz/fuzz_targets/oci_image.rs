//! Any bytes as an image's documents and as a layer: a problem, or a tree within its limits.
#![no_main]

use image::oci::{Applier, Document, defaults, parse_config, parse_document};
use image::tree::{Limits, Tree};
use image::Spool;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (document, config, layer) = input;
    if let Ok(Document::Manifest(manifest)) = parse_document(document) {
        let _ = parse_config(config, manifest.layers().len());
    }
    if let Ok(config) = parse_config(config, 0) {
        let _ = defaults(&config);
    }
    let limits = Limits { entries: 64, bytes: 64 << 10, xattr_bytes: 1 << 10 };
    let spool = Spool::new(&std::env::temp_dir(), 1 << 20).expect("a spool");
    let mut tree = Tree::new(limits);
    let mut applier = Applier::new(&mut tree, &spool);
    // Twice: the second time over what the first left.
    let _ = applier.apply(layer);
    let _ = applier.apply(layer);
    assert!(tree.entries() <= limits.entries && tree.bytes() <= limits.bytes);
    assert!(tree.walk().all(|(path, _)| !path.split(|b| *b == b'/').any(|name| name == b"..")));
});
