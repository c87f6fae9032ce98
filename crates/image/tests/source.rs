//! Directories and files of the host come in as they are; the kernel shows what was written.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use image::tree::{Device, Item, Kind, Limits, Meta, OnSymlink, Time};
use image::{
    Content, DirOptions, ErofsOptions, FileSource, Modes, Owner, SourceError, Spool, Tree, add_dir,
    add_files, write_erofs,
};

fn spool() -> Spool {
    Spool::new(&std::env::temp_dir(), 1 << 30).expect("spool")
}

fn read(tree: &Tree, path: &str) -> (String, Meta) {
    let node = tree.get(tree.lookup(path).expect(path)).expect("node");
    match node.kind() {
        Kind::File(content) => {
            (String::from_utf8(content.to_vec(1 << 20).expect("read")).expect("text"), node.meta.clone())
        }
        other => panic!("{other:?}"),
    }
}

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/program"), "#!").unwrap();
    fs::set_permissions(dir.join("sub/program"), fs::Permissions::from_mode(0o770)).unwrap();
    fs::write(dir.join("plain"), "text").unwrap();
    fs::set_permissions(dir.join("plain"), fs::Permissions::from_mode(0o660)).unwrap();
    fs::hard_link(dir.join("plain"), dir.join("sub/same")).unwrap();
    symlink("../plain", dir.join("sub/link")).unwrap();
    symlink("/nowhere/at/all", dir.join("dangling")).unwrap();
}

#[test]
fn a_directory_keeps_everything_but_its_owner() {
    let dir = tempfile::tempdir().expect("directory");
    sample(dir.path());
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut tree = Tree::new(Limits::default());
    let report = add_dir(&mut tree, &spool(), dir.path(), "", &DirOptions::ROOT).expect("added");
    assert_eq!(report.skipped.len(), 1);
    assert!(report.skipped[0].ends_with("socket: a socket"), "{:?}", report.skipped);
    assert_eq!((report.entries, report.bytes), (7, 6));
    let (text, meta) = read(&tree, "sub/program");
    assert_eq!((text.as_str(), meta.mode, meta.uid, meta.gid), ("#!", 0o770, 0, 0));
    assert_ne!(meta.mtime, Time::default());
    assert_eq!(tree.lookup("plain"), tree.lookup("sub/same"));
    let link = tree.get(tree.lookup("dangling").unwrap()).unwrap();
    assert!(matches!(link.kind(), Kind::Symlink(to) if **to == *b"/nowhere/at/all"));
}

#[test]
fn files_of_a_checkout_do_not_depend_on_when_and_how_it_was_made() {
    let time = Time::from_secs(77);
    let digest = |umask: u32| {
        let dir = tempfile::tempdir().expect("directory");
        sample(dir.path());
        fs::set_permissions(dir.path().join("plain"), fs::Permissions::from_mode(0o666 & !umask)).unwrap();
        let mut tree = Tree::new(Limits::default());
        let sources = [
            FileSource { host: dir.path().to_owned(), guest: "/srv/app".into() },
            FileSource { host: dir.path().join("plain"), guest: "etc/".into() },
            FileSource { host: dir.path().join("sub/link"), guest: "etc/followed".into() },
        ];
        add_files(&mut tree, &spool(), &sources, &DirOptions::checkout(time)).expect("added");
        assert_eq!(read(&tree, "etc/plain").0, "text");
        assert_eq!(read(&tree, "etc/followed").0, "text");
        assert_eq!(read(&tree, "srv/app/sub/program").1.mode, 0o755);
        assert_eq!(read(&tree, "srv/app/plain").1.mode, 0o644);
        tree.digest().unwrap()
    };
    assert_eq!(digest(0o022), digest(0o077));
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut tree = Tree::new(Limits::default());
    let dir = tempfile::tempdir().expect("directory");
    let missing = dir.path().join("missing");
    let said = add_dir(&mut tree, &spool(), &missing, "", &DirOptions::ROOT).expect_err("refused");
    assert!(said.to_string().contains("missing"), "{said}");
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let said = add_dir(&mut tree, &spool(), &file, "", &DirOptions::ROOT).expect_err("refused");
    assert!(matches!(said, SourceError::NotADirectory { .. }), "{said}");
    let source = [FileSource { host: file, guest: "../../up".into() }];
    let said = add_files(&mut tree, &spool(), &source, &DirOptions::ROOT).expect_err("refused");
    assert!(matches!(said, SourceError::Tree { .. }), "{said}");
}

#[test]
fn a_spool_takes_no_more_than_it_may() {
    let spool = Spool::new(&std::env::temp_dir(), 10).expect("spool");
    assert!(spool.add(&mut &b"12345678"[..], 8).is_ok());
    assert!(spool.add(&mut &b"123"[..], 3).is_err());
    assert!(spool.add(&mut &b"1"[..], 2).is_err());
}

/// Mounts an image as the guest would, which takes root and a kernel with EROFS.
#[test]
fn the_kernel_shows_what_was_written() {
    let dir = tempfile::tempdir().expect("directory");
    let mut tree = Tree::new(Limits::default());
    sample_of_everything(&mut tree);
    let image = dir.path().join("image");
    let options = ErofsOptions { uuid: [1; 16], build_time: Time::from_secs(1000) };
    let mut file = File::create(&image).expect("image");
    write_erofs(&tree, &mut file, &options).expect("written");
    file.flush().expect("flushed");
    let at = dir.path().join("mounted");
    fs::create_dir(&at).unwrap();
    let mount = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&image).arg(&at).output();
    match mount {
        Ok(output) if output.status.success() => {}
        other => {
            eprintln!("SKIPPED: an EROFS image cannot be mounted here ({other:?})");
            return;
        }
    }
    let keep = DirOptions { owner: Owner::Keep, modes: Modes::Keep, ..DirOptions::ROOT };
    let mut seen = Tree::new(Limits::default());
    let result = add_dir(&mut seen, &spool(), &at, "", &keep);
    let unmounted = Command::new("umount").arg(&at).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    result.expect("read");
    for ((a, b), (c, d)) in tree.walk().zip(seen.walk()) {
        let (want, got) = (tree.get(b).unwrap(), seen.get(d).unwrap());
        assert_eq!(String::from_utf8_lossy(&a), String::from_utf8_lossy(&c));
        assert_eq!(want.meta, got.meta, "{}", String::from_utf8_lossy(&a));
    }
    assert_eq!(seen.digest().unwrap(), tree.digest().unwrap());
}

fn sample_of_everything(tree: &mut Tree) {
    let mut put = |path: &str, item: Item, uid: u32, secs: i64| {
        let mtime = Time { secs, nanos: if secs == 1000 { 0 } else { 123_456_789 } };
        let mode = if matches!(item, Item::Symlink(_)) { 0o777 } else { 0o2751 };
        let mut meta = Meta { uid, gid: uid / 3, mtime, ..Meta::root_owned(mode) };
        if matches!(item, Item::File(_)) && uid > 0 {
            meta.xattrs.insert(b"user.note"[..].into(), vec![b'n'; 300].into());
        }
        tree.insert(path, item, meta, OnSymlink::Keep).expect(path);
    };
    put("", Item::Dir, 0, 1000);
    put("dev", Item::Dir, 0, 5);
    put("dev/null", Item::CharDevice(Device { major: 1, minor: 3 }), 0, 1000);
    put("dev/big", Item::BlockDevice(Device { major: 259, minor: 0xf_4321 }), 9, 7);
    put("dev/pipe", Item::Fifo, 70_000, 1000);
    for i in 0..600u32 {
        let len = (i as usize * 997) % 14_000;
        let text: Vec<u8> = (0..len).map(|at| (at as u32 * i) as u8).collect();
        let secs = if i % 3 == 0 { 1000 } else { i64::from(i) };
        let uid = if i % 7 == 0 { 100_000 } else { 0 };
        put(
            &format!("files/{i:0>width$}", width = 1 + i as usize % 90),
            Item::File(Content::bytes(text)),
            uid,
            secs,
        );
    }
    put("files", Item::Dir, 3, 4);
    for len in [1, 100, 4000, 4095] {
        put(&format!("link{len}"), Item::Symlink(vec![b'l'; len].into()), 0, 1000);
    }
    tree.link("files/again", "dev/pipe").expect("linked");
    tree.link("again", "files/000").or(tree.link("again", "files/0")).expect("linked");
}
