//! What every root gets in /etc, and what of an image stays.

use image::tree::{Item, Kind, Limits, Meta, OnSymlink};
use image::{Content, Tree, furnish};

fn tree(entries: &[(&str, Item)]) -> Tree {
    let mut tree = Tree::new(Limits::default());
    for (path, item) in entries {
        tree.insert(path, item.clone(), Meta::root_owned(0o755), OnSymlink::Keep).expect("inserted");
    }
    furnish(&mut tree).expect("furnished");
    tree
}

fn text(text: &str) -> Item {
    Item::File(Content::bytes(text.as_bytes()))
}

fn link(target: &str) -> Item {
    Item::Symlink(target.as_bytes().into())
}

/// A file's contents, a link's target, `None` for anything else or nothing.
fn at(tree: &Tree, path: &str) -> Option<String> {
    let bytes = match tree.get(tree.lookup(path)?)?.kind() {
        Kind::File(content) => content.to_vec(4096).expect("read"),
        Kind::Symlink(target) => target.to_vec(),
        _ => return None,
    };
    Some(String::from_utf8(bytes).expect("text"))
}

const WHOLE: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tsmolvm\n";

#[test]
fn a_root_without_them_gets_both() {
    for entries in
        [&[][..], &[("etc", Item::Dir)], &[("etc/hosts", text(""))], &[("etc/hosts", link("gone"))]]
    {
        let tree = tree(entries);
        assert_eq!(at(&tree, "etc/mtab").as_deref(), Some("/proc/self/mounts"));
        assert_eq!(at(&tree, "etc/hosts").as_deref(), Some(WHOLE));
    }
}

#[test]
fn what_an_image_has_stays() {
    let own = tree(&[("etc/mtab", text("none / none\n")), ("etc/hosts", text("::1 a # smolvm\n10.0.0.1 b"))]);
    assert_eq!(at(&own, "etc/mtab").as_deref(), Some("none / none\n"));
    assert_eq!(at(&own, "etc/hosts").as_deref(), Some("::1 a # smolvm\n10.0.0.1 b\n127.0.1.1\tsmolvm\n"));
    let knows = tree(&[("etc/hosts", text("10.0.0.1 b\tsmolvm"))]);
    assert_eq!(at(&knows, "etc/hosts").as_deref(), Some("10.0.0.1 b\tsmolvm"));
}

#[test]
fn it_is_done_once() {
    let mut twice = tree(&[]);
    let before = twice.digest().expect("digest");
    furnish(&mut twice).expect("furnished");
    assert_eq!(twice.digest().expect("digest"), before);
}

#[test]
fn links_are_followed_inside_the_root_only() {
    let moved = tree(&[
        ("usr/etc", Item::Dir),
        ("etc", link("../../usr/etc")),
        ("usr/etc/hosts", link("/h")),
        ("h", text("::1 x\n")),
    ]);
    assert_eq!(at(&moved, "usr/etc/mtab").as_deref(), Some("/proc/self/mounts"));
    assert_eq!(at(&moved, "h").as_deref(), Some("::1 x\n127.0.1.1\tsmolvm\n"));
}

#[test]
fn a_strange_etc_is_left_alone() {
    for etc in [text("no directory"), link("nowhere"), link("etc")] {
        let before = {
            let mut tree = Tree::new(Limits::default());
            tree.insert("etc", etc.clone(), Meta::root_owned(0o755), OnSymlink::Keep).expect("inserted");
            tree.digest().expect("digest")
        };
        assert_eq!(tree(&[("etc", etc)]).digest().expect("digest"), before);
    }
    let directory = tree(&[("etc/hosts/x", text(""))]);
    assert!(directory.lookup("etc/hosts/x").is_some());
}
