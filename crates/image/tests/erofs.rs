//! Images are read back as they were written, by us, by erofs-utils, and after damage.

use std::process::Command;
use std::sync::Arc;

use image::content::ReadAt;
use image::tree::{Device, Item, Limits, Meta, OnSymlink, ROOT, Time, Tree};
use image::{Content, ErofsOptions, ImageInfo, read_erofs, write_erofs};
use proptest::prelude::*;

const BUILD: Time = Time::from_secs(1_700_000_000);
const OPTIONS: ErofsOptions = ErofsOptions { uuid: *b"0123456789abcdef", build_time: BUILD };

fn written(tree: &Tree) -> (Vec<u8>, ImageInfo) {
    let mut image = Vec::new();
    let info = write_erofs(tree, &mut image, &OPTIONS).expect("written");
    assert_eq!(info.size, image.len() as u64);
    assert_eq!(image.len() % 4096, 0);
    (image, info)
}

fn reread(image: Vec<u8>) -> Tree {
    let image: Arc<dyn ReadAt> = Arc::new(image);
    read_erofs(image, Limits::default()).expect("read back")
}

/// Asks fsck.erofs, where there is one.
fn fsck(image: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    std::io::Write::write_all(&mut file, image).expect("written");
    match Command::new("fsck.erofs").arg("--extract").arg(file.path()).output() {
        Ok(output) => assert!(
            output.status.success(),
            "fsck.erofs: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(e) => eprintln!("SKIPPED: fsck.erofs cannot be run ({e}); install erofs-utils"),
    }
}

fn bytes(len: usize, seed: u8) -> Content {
    let bytes: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
    Content::bytes(bytes)
}

fn meta(mode: u16, time: Time) -> Meta {
    Meta { mtime: time, ..Meta::root_owned(mode) }
}

fn put(tree: &mut Tree, path: &str, item: Item, meta: Meta) {
    tree.insert(path, item, meta, OnSymlink::Keep).expect("inserted");
}

#[test]
fn an_empty_root_is_two_blocks() {
    let (image, info) = written(&Tree::new(Limits::default()));
    assert_eq!((image.len(), info.inodes), (8192, 1));
    fsck(&image);
}

#[test]
fn every_kind_of_file_survives() {
    let mut tree = Tree::new(Limits::default());
    let odd = Time { secs: -5, nanos: 999_999_999 };
    for len in [0, 1, 4000, 4031, 4032, 4033, 4064, 4065, 4095, 4096, 4097, 6144, 6145, 1 << 20] {
        put(&mut tree, &format!("f/plain{len}"), Item::File(bytes(len, 1)), meta(0o644, BUILD));
        put(&mut tree, &format!("f/own{len}"), Item::File(bytes(len, 2)), meta(0o4755, odd));
    }
    for len in [1, 59, 4000, 4095] {
        let target: Vec<u8> = vec![b'x'; len];
        put(&mut tree, &format!("l{len}"), Item::Symlink(target.into()), meta(0o777, odd));
    }
    let device = Device { major: 0xabc, minor: 0xf_1234 };
    put(&mut tree, "dev/c", Item::CharDevice(device), meta(0o600, BUILD));
    put(&mut tree, "dev/b", Item::BlockDevice(device), meta(0o660, odd));
    put(&mut tree, "dev/p", Item::Fifo, meta(0o600, BUILD));
    put(&mut tree, "dev/s", Item::Socket, meta(0o600, BUILD));
    let mut owned = meta(0o640, BUILD);
    (owned.uid, owned.gid) = (70_000, u32::MAX);
    owned.xattrs.insert(b"security.capability"[..].into(), b"\x01\0\0\x02"[..].into());
    owned.xattrs.insert(b"user.x"[..].into(), vec![7; 5000].into());
    put(&mut tree, "f/xattrs", Item::File(bytes(9000, 3)), owned);
    tree.link("hard", "f/plain4097").expect("linked");
    let (image, _) = written(&tree);
    fsck(&image);
    assert_eq!(reread(image).digest().unwrap(), tree.digest().unwrap());
}

#[test]
fn a_directory_of_many_blocks_is_sorted_around_the_dots() {
    let mut tree = Tree::new(Limits::default());
    for i in 0..5000 {
        let name = format!("big/!{i:0width$}", width = i % 200 + 1);
        put(&mut tree, &name, Item::File(Content::empty()), meta(0o644, BUILD));
    }
    put(&mut tree, "big/-sorts-before-dot", Item::Dir, meta(0o755, BUILD));
    put(&mut tree, "big/.hidden", Item::Dir, meta(0o755, BUILD));
    let (image, _) = written(&tree);
    fsck(&image);
    assert_eq!(reread(image).digest().unwrap(), tree.digest().unwrap());
}

#[test]
fn equal_files_share_blocks() {
    let mut tree = Tree::new(Limits::default());
    put(&mut tree, "a", Item::File(bytes(1 << 20, 9)), meta(0o644, BUILD));
    put(&mut tree, "b/copy", Item::File(bytes(1 << 20, 9)), meta(0o600, BUILD));
    let (image, info) = written(&tree);
    assert_eq!(info.shared_bytes, 1 << 20);
    assert!(image.len() < (1 << 20) + 5 * 4096);
    fsck(&image);
    assert_eq!(reread(image).digest().unwrap(), tree.digest().unwrap());
}

/// A lock promises the same image from every release: a change of the layout is a decision (raise
/// the lock's version), not an accident.
#[test]
fn the_layout_is_pinned() {
    let mut tree = Tree::new(Limits::default());
    for i in 0..300usize {
        let name = format!("dir{}/file{i}", i % 7);
        put(&mut tree, &name, Item::File(bytes(i * 53, i as u8)), meta(0o644, Time::from_secs(i as i64 / 9)));
    }
    put(&mut tree, "link", Item::Symlink(b"dir1/file1"[..].into()), meta(0o777, BUILD));
    tree.link("dir2/again", "dir0/file0").expect("linked");
    let digest = blake3::hash(&written(&tree).0).to_hex();
    assert_eq!(digest.as_str(), "d33b195cc7324692437c0d87de5e977b30c439636eb5715ecc4b4eb047c2bd07");
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u8>, u8, usize, u16, u32, i64, Option<u16>),
    Link(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        4 => "[a-c]",
        1 => "[ -.0-~]{1,40}",
        1 => "[x-z]{200,255}",
    ];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/").into_bytes())
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![Just(0), 1..5000usize, 4090..4100usize, 8000..20_000usize];
    let time = prop_oneof![Just(BUILD.secs), any::<i64>()];
    let uid = prop_oneof![Just(0), any::<u32>()];
    prop_oneof![
        8 => (path(), 0..8u8, len, 0..0o10000u16, uid, time, prop::option::of(0..4500u16))
            .prop_map(|(p, k, l, m, u, t, x)| Op::Put(p, k, l, m, u, t, x)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(Op::Remove),
    ]
}

fn apply(tree: &mut Tree, op: Op) {
    match op {
        Op::Put(path, kind, len, mode, owner, secs, xattr) => {
            let item = match kind {
                0 | 1 => Item::Dir,
                2 => Item::Symlink(vec![b'a'; len.clamp(1, 4095)].into()),
                3 => Item::Fifo,
                4 => Item::CharDevice(Device { major: 1, minor: 3 }),
                _ => Item::File(bytes(len, kind)),
            };
            let mut meta = Meta { uid: owner, gid: owner / 2, ..meta(mode, Time { secs, nanos: 1 }) };
            if secs == BUILD.secs {
                meta.mtime.nanos = 0;
            }
            if let Some(len) = xattr {
                meta.xattrs.insert(b"user.test"[..].into(), vec![1; len.into()].into());
            }
            // Refusals (a file as a parent) are part of the walk.
            let _ = tree.insert(path, item, meta, OnSymlink::Keep);
        }
        Op::Link(path, target) => drop(tree.link(path, target)),
        Op::Remove(path) => drop(tree.remove(path)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_trees_survive(ops in prop::collection::vec(op(), 0..120), check in 0..8u8) {
        let mut tree = Tree::new(Limits::default());
        for op in ops {
            apply(&mut tree, op);
        }
        let (image, info) = written(&tree);
        prop_assert_eq!(&written(&tree).0, &image);
        if check == 0 {
            fsck(&image);
        }
        let back = reread(image);
        prop_assert_eq!(back.digest().unwrap(), tree.digest().unwrap());
        prop_assert_eq!(back.entries(), tree.entries());
        let nodes: std::collections::HashSet<_> = tree.walk().map(|(_, id)| id).collect();
        prop_assert_eq!(info.inodes, nodes.len() as u64);
    }

    /// Whatever is flipped: an error or a tree, never a panic, never more than the image holds.
    #[test]
    fn damaged_images_are_survived(
        ops in prop::collection::vec(op(), 0..40),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut tree = Tree::new(Limits::default());
        for op in ops {
            apply(&mut tree, op);
        }
        let (mut image, info) = written(&tree);
        let meta = info.meta_bytes as usize;
        for (at, value) in flips {
            image[1024 + at.index(meta - 1024)] = value;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let image: Arc<dyn ReadAt> = Arc::new(image);
        if let Ok(tree) = read_erofs(image, Limits { entries: 100_000, ..Limits::default() }) {
            let _ = tree.digest();
            prop_assert!(tree.get(ROOT).is_some_and(|root| root.is_dir()));
        }
    }
}

#[test]
fn files_that_shared_their_blocks_share_them_in_the_next_image() {
    let mut tree = Tree::new(Limits::default());
    for (path, seed) in [("a", 1), ("b", 1), ("c", 2)] {
        put(&mut tree, path, Item::File(bytes(3 * 4096 + 100, seed)), meta(0o644, BUILD));
    }
    let (first, info) = written(&tree);
    assert!(info.shared_bytes >= 3 * 4096, "{info:?}");
    // What is read back knows no digest of its files, only where they lay.
    let (second, _) = written(&reread(first.clone()));
    assert!(first == second, "{} and {} bytes", first.len(), second.len());
}
