//! A session over a freeze: the folder may be as it was, changed, moved, or gone.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use hostfs::SessionState;
use proptest::prelude::*;

/// The state as the file has it.
fn travelled(g: &Guest) -> SessionState {
    let bytes = postcard::to_stdvec(&g.server.save()).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("d/e")).unwrap();
    fs::write(dir.join("d/e/f"), "12345").unwrap();
}

#[test]
fn what_was_known_and_open_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut g = Guest::on(dir.path());
    let file = g.find("d/e/f").unwrap();
    let (fh, _) = g.open(file.node, RDWR).unwrap();
    g.write(fh, 0, b"x").unwrap();
    let list = g.opendir(TOP).unwrap();
    let first = g.readdir(list, 0, 64, false).unwrap();
    let mut g = Guest::restored(&travelled(&g), &[(dir.path(), "/srv", false)]);
    assert_eq!(g.stat(file.node).unwrap().0, 5);
    assert_eq!(g.read(fh, 0, 9).unwrap(), b"x2345");
    g.write(fh, 4, b"y").unwrap();
    assert_eq!(fs::read(dir.path().join("d/e/f")).unwrap(), b"x234y");
    let rest = g.readdir(list, first.next, 4096, false).unwrap();
    assert_eq!(first.names.len() + rest.names.len(), 3, ". and .. and d");
    assert_eq!(g.find("d/e/f").unwrap().node, file.node);
    let (new, _) = g.create(TOP, "new", RDWR, 0o600).unwrap();
    assert!(new.node > file.node, "numbers are not used twice");
    assert!(g.open(file.node, RDONLY).unwrap().0 > list);
}

#[test]
fn the_same_tree_elsewhere_takes_its_place() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(a.path());
    tree(b.path());
    let time = fs::metadata(a.path().join("d/e/f")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(b.path().join("d/e/f")).unwrap().set_modified(time).unwrap();
    let mut g = Guest::on(a.path());
    let (sub, file) = (g.find("d").unwrap(), g.find("d/e/f").unwrap());
    let (fh, _) = g.open(file.node, RDONLY).unwrap();
    let mut g = Guest::restored(&travelled(&g), &[(b.path(), "/srv", false)]);
    assert_eq!(g.read(fh, 0, 9).unwrap(), b"12345");
    g.mkdir(sub.node, "made", 0o755).unwrap();
    assert!(b.path().join("d/made").is_dir() && !a.path().join("d/made").exists());
}

#[test]
fn a_file_that_was_replaced_or_removed_meanwhile_is_stale() {
    for replace in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let path = dir.path().join("d/e/f");
        let mut g = Guest::on(dir.path());
        let (sub, file) = (g.find("d/e").unwrap(), g.find("d/e/f").unwrap());
        let (fh, _) = g.open(file.node, RDWR).unwrap();
        let state = travelled(&g);
        if replace {
            fs::write(dir.path().join("other"), "another file").unwrap();
            fs::rename(dir.path().join("other"), &path).unwrap();
            drop(g);
            // The same once more, perhaps with the first one's number.
            fs::write(dir.path().join("other"), "another file").unwrap();
            fs::rename(dir.path().join("other"), &path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        let mut g = Guest::restored(&state, &[(dir.path(), "/srv", false)]);
        assert_eq!(g.write(fh, 0, b"x"), Err(ESTALE));
        assert_eq!(g.read(fh, 0, 9), Err(ESTALE));
        assert_eq!(g.lookup(sub.node, "f").map(|e| e.size).ok(), replace.then_some(12));
        g.release(fh);
        if replace {
            assert_eq!(fs::read(&path).unwrap(), b"another file");
        }
    }
}

#[test]
fn an_open_file_without_a_name_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (file, fh) = g.create(TOP, "a", RDWR, 0o600).unwrap();
    g.unlink(TOP, "a").unwrap();
    let state = travelled(&g);
    drop(g);
    // Its inode's number is free now, and as likely as not the next file's.
    fs::write(dir.path().join("a"), "another").unwrap();
    let mut g = Guest::restored(&state, &[(dir.path(), "/srv", false)]);
    assert_eq!((g.read(fh, 0, 9), g.stat(file.node)), (Err(ESTALE), Err(ESTALE)));
}

#[test]
fn without_its_folder_everything_is_stale_and_with_it_again_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut g = Guest::on(dir.path());
    let file = g.find("d/e/f").unwrap();
    let (fh, _) = g.open(file.node, RDONLY).unwrap();
    let mut without = Guest::restored(&travelled(&g), &[]);
    assert_eq!(without.server.missing(), ["/srv"]);
    assert!(without.server.placed().is_empty());
    assert_eq!(without.read(fh, 0, 9), Err(ESTALE));
    assert_eq!(without.stat(file.node), Err(ESTALE));
    assert_eq!(without.lookup(1, "0").err(), Some(ESTALE));
    assert_eq!(without.lookup(TOP, "d").err(), Some(ESTALE));
    assert_eq!(without.opendir(TOP), Err(ESTALE));
    assert_eq!(without.ask(17, TOP, &[]), Err(ESTALE));
    let mut again = Guest::restored(&travelled(&without), &[(dir.path(), "/srv", false)]);
    assert!(again.server.missing().is_empty());
    assert_eq!(again.read(fh, 0, 9).unwrap(), b"12345");
}

#[test]
fn read_only_holds_for_what_was_open_for_writing() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut g = Guest::on(dir.path());
    let file = g.find("d/e/f").unwrap();
    let (fh, _) = g.open(file.node, RDWR).unwrap();
    let mut g = Guest::restored(&travelled(&g), &[(dir.path(), "/srv", true)]);
    assert_eq!(g.write(fh, 0, b"x"), Err(EROFS));
    assert_eq!(g.read(fh, 0, 9), Err(ESTALE), "it cannot be opened as it was");
    assert_eq!(fs::read(dir.path().join("d/e/f")).unwrap(), b"12345");
}

#[test]
fn folders_can_be_added_and_keep_apart() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(a.path());
    fs::write(b.path().join("in-b"), "").unwrap();
    let mut g = Guest::on(a.path());
    let file = g.find("d/e/f").unwrap();
    let mut g = Guest::restored(&travelled(&g), &[(b.path(), "/other", false), (a.path(), "/srv", false)]);
    let placed: Vec<_> = g.server.placed().into_iter().map(|p| (p.id, p.guest)).collect();
    assert_eq!(placed, [(0, "/srv".into()), (1, "/other".into())]);
    assert_eq!(g.stat(file.node).unwrap().0, 5);
    assert_eq!(g.list(TOP + 1, 4096, true), ["in-b"]);
    // A machine that was frozen before it had any.
    let mut g = Guest::restored(&travelled(&Guest::new(&[])), &[(a.path(), "/srv", false)]);
    assert_eq!(g.find("d/e/f").unwrap().size, 5);
    let mut g = Guest::restored(&travelled(&Guest::raw(&[])), &[(a.path(), "/srv", false)]);
    g.init();
    assert_eq!(g.find("d/e/f").unwrap().size, 5);
}

#[test]
fn a_state_names_no_place_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut g = Guest::on(dir.path());
    g.find("d/e/f").unwrap();
    let bytes = postcard::to_stdvec(&g.server.save()).unwrap();
    let name = dir.path().file_name().unwrap().as_encoded_bytes();
    assert!(!bytes.windows(name.len()).any(|w| w == name));
}

/// A change here needs a new version number in the device's state, and a reader of the old one.
#[test]
fn the_layout_of_version_1_is_pinned() {
    let pinned = [
        "01",                                             // live
        "01 00 04 2f737276 00",                           // the folder: number, place, no file
        "02",                                             // nodes
        "02 00 01 01 30 05 09 808001 01 00 01",           // the folder's own
        "8008 00 02 01 66 05 0a 808002 02",               // a file
        "01 03 08 05 0c 07 01",                           // its version; unsure
        "8108",                                           // the next number
        "01 01 8008 02 00 01 0a 01 08 05 03 08 05 0c 07", // an open file
        "01 01 05",                                       // the last handle, devices
    ];
    let pinned = pinned.concat().replace(' ', "");
    let bytes: Vec<u8> =
        (0..pinned.len() / 2).map(|i| u8::from_str_radix(&pinned[i * 2..i * 2 + 2], 16).unwrap()).collect();
    let state: SessionState = postcard::from_bytes(&bytes).unwrap();
    let mut g = Guest::raw(&[]);
    g.server.restore(&state).unwrap();
    assert_eq!(g.server.missing(), ["/srv"]);
    let again = postcard::to_stdvec(&g.server.save()).unwrap();
    assert_eq!(again.iter().map(|b| format!("{b:02x}")).collect::<String>(), pinned);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A state that no server saved: refused, or served without leaving the folder.
    #[test]
    fn spoiled_states_are_refused_or_harmless(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let mut g = Guest::on(dir.path());
        let file = g.find("d/e/f").unwrap();
        let (fh, _) = g.open(file.node, RDONLY).unwrap();
        let mut bytes = postcard::to_stdvec(&g.server.save()).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let Ok(state) = postcard::from_bytes::<SessionState>(&bytes) else { return Ok(()) };
        let mut g = Guest::raw(&[(dir.path(), "/srv", false)]);
        if g.server.restore(&state).is_ok() {
            let _ = (g.stat(file.node), g.read(fh, 0, 9), g.find("d/e/f").is_ok());
            let state = g.server.save();
            let mut again = Guest::raw(&[(dir.path(), "/srv", false)]);
            prop_assert_eq!(again.server.restore(&state), Ok(()));
        }
    }
}
