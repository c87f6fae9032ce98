//! What layers mean.

use std::io::Write;

use image::tree::{Device, Kind, Tree};
use serde_json::json;

use crate::made::{Layer, World, paths, text};

fn layered(layers: &[Vec<u8>]) -> Tree {
    World::new().tree_of(layers).unwrap()
}

fn lower() -> Vec<u8> {
    Layer::new().dir("d").dir("d/sub").file("d/a", "a").file("d/sub/b", "b").file("c", "c").tar()
}

#[test]
fn whiteouts_take_names_of_lower_layers_away() {
    let tree = layered(&[lower(), Layer::new().file("d/.wh.a", "").file(".wh.c", "").tar()]);
    assert_eq!(paths(&tree), ["d", "d/sub", "d/sub/b"]);
    let tree = layered(&[lower(), Layer::new().file(".wh.d", "").tar()]);
    assert_eq!(paths(&tree), ["c"]);
}

#[test]
fn an_opaque_directory_keeps_what_its_own_layer_brought_wherever_the_mark_stands() {
    for (first, last) in [(true, false), (false, true)] {
        let mut layer = Layer::new();
        if first {
            layer = layer.file("d/.wh..wh..opq", "");
        }
        layer = layer.dir("d").dir("d/sub").file("d/sub/new", "n").file("d/.wh..wh.plnk", "");
        if last {
            layer = layer.file("d/.wh..wh..opq", "");
        }
        assert_eq!(paths(&layered(&[lower(), layer.tar()])), ["c", "d", "d/sub", "d/sub/new"]);
    }
}

#[test]
fn a_whiteout_beside_a_new_file_of_that_name_leaves_the_new_one() {
    let tree = layered(&[
        lower(),
        Layer::new().file("c", "new").file(".wh.c", "").file("d/new", "").file(".wh.d", "").tar(),
    ]);
    assert_eq!(text(&tree, "c"), "new");
    assert_eq!(paths(&tree), ["c", "d", "d/new"]);
}

#[test]
fn a_hard_link_to_a_lower_file_shares_it_and_whiteouts_do_not_confuse_them() {
    let upper = Layer::new().hard_link("second", "c").file(".wh.c", "").tar();
    let tree = layered(&[lower(), upper]);
    assert!(tree.lookup("c").is_none());
    assert_eq!(text(&tree, "second"), "c");
}

#[test]
fn files_and_directories_take_each_others_place() {
    let upper = Layer::new().file("d", "now a file").dir("c").file("c/x", "").tar();
    assert_eq!(paths(&layered(&[lower(), upper])), ["c", "c/x", "d"]);
    // A directory takes a link's place, and a parent that is a link is followed inside the image.
    let first = Layer::new().dir("real").symlink("link", "/real").symlink("other", "real").tar();
    let tree = layered(&[first, Layer::new().file("link/x", "1").dir("other").file("other/y", "2").tar()]);
    assert_eq!(paths(&tree), ["link", "other", "other/y", "real", "real/x"]);
}

#[test]
fn ownership_attributes_and_devices_come_as_recorded() {
    let mut device = tar::Header::new_gnu();
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let layer = Layer::new()
        .xattr("security.capability", b"\x01\0\0\x02")
        .file("ping", "p")
        .xattr("trusted.overlay.opaque", b"y")
        .dir("odd")
        .add(tar::EntryType::Char, "zero", b"", "")
        .add(tar::EntryType::Fifo, "pipe", b"", "");
    let tree = layered(&[layer.tar()]);
    let node = |path: &str| tree.get(tree.lookup(path).unwrap()).unwrap();
    assert_eq!((node("ping").meta.uid, node("ping").meta.gid, node("ping").meta.mode), (7, 8, 0o644));
    assert_eq!(node("ping").meta.xattrs.len(), 1);
    assert!(node("odd").meta.xattrs.is_empty(), "overlayfs's marks are not the image's to give");
    assert!(matches!(node("zero").kind(), Kind::CharDevice(Device { major: 0, minor: 0 })));
    assert!(matches!(node("pipe").kind(), Kind::Fifo));
}

#[test]
fn layers_come_plain_gzip_and_zstd() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    type Pack<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let packs: [Pack<'_>; 3] = [&gzip, &zstd, &|bytes| bytes.to_vec()];
    for pack in packs {
        let world = World::new();
        world.index(vec![world.image(&[lower()], json!({}), pack)]);
        let (tree, _spool) = world.unpack(&world.open("oci:layout").unwrap()).unwrap();
        assert_eq!(text(&tree, "d/sub/b"), "b");
    }
}

#[test]
fn a_layer_without_an_end_mark_is_whole_when_its_digest_says_so() {
    let mut tar = lower();
    tar.truncate(tar.len() - 1024);
    assert_eq!(text(&layered(&[tar]), "c"), "c");
}
