//! A tree keeps everything inside, whatever an archive says.

use image::tree::{Item, Kind, Limits, Meta, OnSymlink, PathError, ROOT, TreeError};
use image::{Content, Tree};

fn tree() -> Tree {
    Tree::new(Limits::default())
}

fn put(tree: &mut Tree, path: &str, item: Item) -> Result<(), TreeError> {
    tree.insert(path, item, Meta::root_owned(0o644), OnSymlink::Keep).map(drop)
}

fn file() -> Item {
    Item::File(Content::bytes(&b"x"[..]))
}

fn link(target: &str) -> Item {
    Item::Symlink(target.as_bytes().into())
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().skip(1).map(|(path, _)| String::from_utf8(path).unwrap()).collect()
}

fn why(result: Result<(), TreeError>) -> PathError {
    match result {
        Err(TreeError::Path { why, .. }) => why,
        other => panic!("expected a path error, not {other:?}"),
    }
}

#[test]
fn odd_spellings_name_the_same_place() {
    let mut tree = tree();
    for path in ["./a/b", "/a//b", "a/./b/", "a/b"] {
        put(&mut tree, path, file()).unwrap();
    }
    assert_eq!(paths(&tree), ["a", "a/b"]);
}

#[test]
fn dotdot_nul_and_long_names_are_refused() {
    let mut tree = tree();
    assert_eq!(why(put(&mut tree, "../etc/passwd", file())), PathError::DotDot);
    assert_eq!(why(put(&mut tree, "a/../../b", file())), PathError::DotDot);
    assert_eq!(why(put(&mut tree, "a\0b", file())), PathError::Nul);
    assert_eq!(why(put(&mut tree, &"n".repeat(256), file())), PathError::TooLong);
    assert_eq!(why(put(&mut tree, &"n/".repeat(2100), file())), PathError::TooLong);
    assert_eq!(paths(&tree), [""; 0]);
}

#[test]
fn links_lead_nowhere_but_inside() {
    let mut tree = tree();
    put(&mut tree, "etc", Item::Dir).unwrap();
    put(&mut tree, "up", link("../../../..")).unwrap();
    put(&mut tree, "abs", link("/etc")).unwrap();
    put(&mut tree, "up/etc/one", file()).unwrap();
    put(&mut tree, "abs/two", file()).unwrap();
    assert!(tree.lookup("etc/one").is_some() && tree.lookup("etc/two").is_some());
    put(&mut tree, "loop", link("loop")).unwrap();
    assert_eq!(why(put(&mut tree, "loop/x", file())), PathError::Loop);
    put(&mut tree, "gone", link("/nowhere")).unwrap();
    assert_eq!(why(put(&mut tree, "gone/x", file())), PathError::NotFound);
    assert_eq!(why(put(&mut tree, "etc/one/x", file())), PathError::NotADirectory);
}

#[test]
fn links_cannot_make_paths_without_end() {
    let mut tree = tree();
    let deep = "d/".repeat(1000);
    put(&mut tree, &deep, Item::Dir).unwrap();
    put(&mut tree, "s", link(&deep)).unwrap();
    put(&mut tree, &format!("s/{deep}"), Item::Dir).unwrap();
    put(&mut tree, "t", link(&format!("s/{deep}"))).unwrap();
    assert_eq!(why(put(&mut tree, &format!("t/{deep}"), Item::Dir)), PathError::TooLong);
}

#[test]
fn a_merged_usr_stays_merged() {
    let mut tree = tree();
    put(&mut tree, "usr/lib", Item::Dir).unwrap();
    put(&mut tree, "lib", link("usr/lib")).unwrap();
    put(&mut tree, "lib", Item::Dir).unwrap();
    put(&mut tree, "lib/x/y", file()).unwrap();
    assert_eq!(paths(&tree), ["lib", "usr", "usr/lib", "usr/lib/x", "usr/lib/x/y"]);
    tree.insert("lib", Item::Dir, Meta::root_owned(0o755), OnSymlink::Replace).unwrap();
    assert!(matches!(tree.get(tree.lookup("lib").unwrap()).unwrap().kind(), Kind::Dir(_)));
}

#[test]
fn a_file_does_not_take_a_filled_directorys_place() {
    let mut tree = tree();
    put(&mut tree, "d/x", file()).unwrap();
    assert!(matches!(put(&mut tree, "d", file()), Err(TreeError::NotEmpty { .. })));
    assert!(tree.remove("d/x"));
    put(&mut tree, "d", file()).unwrap();
    assert_eq!(paths(&tree), ["d"]);
}

#[test]
fn hard_links_share_one_inode_until_the_last_is_gone() {
    let mut tree = tree();
    put(&mut tree, "a", file()).unwrap();
    tree.link("b/c", "a").unwrap();
    let id = tree.lookup("a").unwrap();
    assert_eq!(tree.lookup("b/c"), Some(id));
    assert_eq!(tree.get(id).unwrap().names(), 2);
    assert_eq!(tree.bytes(), 1);
    tree.link("a", "b/c").unwrap();
    assert_eq!(tree.get(id).unwrap().names(), 2);
    assert!(tree.remove("a") && tree.remove("b"));
    assert_eq!((tree.bytes(), tree.entries()), (0, 0));
    assert!(tree.get(id).is_none());
    assert!(matches!(tree.link("x", "nothing"), Err(TreeError::Link { .. })));
    assert!(matches!(tree.link("x", "/"), Err(TreeError::Link { .. })));
}

#[test]
fn limits_hold_and_leave_the_tree_as_it_was() {
    let mut tree = Tree::new(Limits { entries: 2, bytes: 3, xattr_bytes: 10 });
    put(&mut tree, "a", file()).unwrap();
    let big = Item::File(Content::bytes(&b"toolong"[..]));
    assert!(matches!(put(&mut tree, "b", big), Err(TreeError::Limit { what: "bytes", .. })));
    put(&mut tree, "b", file()).unwrap();
    assert!(matches!(put(&mut tree, "c", file()), Err(TreeError::Limit { what: "entries", .. })));
    let mut meta = Meta::root_owned(0o644);
    meta.xattrs.insert(b"user.name"[..].into(), b"value"[..].into());
    let refused = tree.insert("a", file(), meta, OnSymlink::Keep);
    assert!(matches!(refused, Err(TreeError::Inode { .. })));
    assert_eq!(paths(&tree), ["a", "b"]);
    assert_eq!(tree.bytes(), 2);
}

#[test]
fn the_root_takes_metadata_and_stays_a_directory() {
    let mut tree = tree();
    tree.insert("./", Item::Dir, Meta::root_owned(0o700), OnSymlink::Keep).unwrap();
    assert_eq!(tree.get(ROOT).unwrap().meta.mode, 0o700);
    assert_eq!(why(put(&mut tree, "/", file())), PathError::Root);
}

#[test]
fn messages_do_not_carry_control_characters() {
    let mut tree = tree();
    let message = put(&mut tree, "\x1b[2J/../x", file()).unwrap_err().to_string();
    assert!(!message.contains('\x1b'), "{message}");
}

#[test]
fn the_digest_tells_content_metadata_and_links_apart() {
    let digest = |change: &dyn Fn(&mut Tree)| {
        let mut tree = tree();
        put(&mut tree, "a", file()).unwrap();
        put(&mut tree, "b", file()).unwrap();
        change(&mut tree);
        tree.digest().unwrap()
    };
    let plain = digest(&|_| ());
    assert_eq!(plain, digest(&|_| ()));
    assert_ne!(plain, digest(&|tree| drop(tree.link("b", "a"))));
    assert_ne!(plain, digest(&|tree| assert!(tree.remove("b"))));
    assert_ne!(
        plain,
        digest(&|tree| {
            let id = tree.lookup("a").unwrap();
            tree.meta_mut(id).unwrap().uid = 1;
        })
    );
}
