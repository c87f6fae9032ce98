//! Copies in and out, also of what means harm: nothing leaves the guest's root.

mod common;

use agent::tar::read::Reader;
use agent::tar::write::Writer;
use agent::tar::{Entry, Kind};
use agent_protocol::{ErrorKind, FrameKind, PathKind, PathStat, Reply, Request};
use common::Agent;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// An agent whose root is a scratch directory, and that directory.
fn agent() -> (Agent, PathBuf) {
    let agent = Agent::start(&["--root", "{}"]);
    let root = agent.path().to_path_buf();
    (agent, root)
}

fn stat(agent: &Agent, path: &str, follow: bool) -> Result<PathStat, ErrorKind> {
    match agent.connect().call(&Request::Stat { path: path.into(), follow }) {
        Ok(Reply::Stat(stat)) => Ok(stat),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.kind()),
    }
}

fn collect(agent: &Agent, request: &Request) -> Result<Vec<u8>, ErrorKind> {
    let mut client = agent.connect();
    client.start(request).expect("sent");
    let mut bytes = Vec::new();
    loop {
        let frame = client.next_frame().map_err(|error| error.kind())?;
        match frame.kind {
            FrameKind::Data => bytes.extend(frame.payload),
            FrameKind::Reply => {}
            FrameKind::DataEnd => return Ok(bytes),
            other => panic!("{other:?} in a copy"),
        }
    }
}

fn out(agent: &Agent, path: &str, follow: bool) -> Result<Vec<(Entry, Vec<u8>)>, ErrorKind> {
    let bytes = collect(agent, &Request::CopyOut { path: path.into(), follow })?;
    Ok(entries(&bytes))
}

fn entries(bytes: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = Reader::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().expect("a tar stream") {
        let mut contents = Vec::new();
        reader.contents().read_to_end(&mut contents).expect("contents");
        found.push((entry, contents));
    }
    found
}

fn put(agent: &Agent, path: &str, owner: Option<(u32, u32)>, bytes: &[u8]) -> Result<(), ErrorKind> {
    let mut client = agent.connect();
    client.start(&Request::CopyIn { path: path.into(), owner }).expect("sent");
    client.send_data(FrameKind::Data, bytes).expect("sent");
    client.send_mark(FrameKind::DataEnd).expect("sent");
    client.reply().map(drop).map_err(|error| error.kind())
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, contents) in entries {
        let entry = Entry { size: contents.len() as u64, ..entry.clone() };
        writer.entry(&entry).expect("an entry");
        writer.contents(&mut &**contents, entry.size).expect("contents");
    }
    writer.finish().expect("an end")
}

fn link(path: &str, kind: Kind, target: &str) -> (Entry, &'static [u8]) {
    (Entry { link: target.into(), ..Entry::new(path, kind) }, b"")
}

fn file<'a>(path: &str, contents: &'a [u8]) -> (Entry, &'a [u8]) {
    (Entry::new(path, Kind::File), contents)
}

fn names(found: &[(Entry, Vec<u8>)]) -> Vec<String> {
    found.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[test]
fn a_tree_goes_out_and_in_again_unchanged() {
    let (agent, root) = agent();
    let tree = root.join("tree");
    fs::create_dir_all(tree.join("sub")).expect("directories");
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    fs::write(tree.join("big"), &big).expect("a file");
    fs::write(tree.join("sub/run"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(tree.join("sub/run"), fs::Permissions::from_mode(0o4750)).expect("a mode");
    fs::hard_link(tree.join("big"), tree.join("same")).expect("a link");
    symlink("../elsewhere", tree.join("sub/link")).expect("a link");
    let long = "n".repeat(200);
    fs::write(tree.join(&long), "long").expect("a file");
    let found = out(&agent, "/tree", false).expect("a copy");
    let expected = [
        "tree",
        "tree/big",
        &format!("tree/{long}"),
        "tree/same",
        "tree/sub",
        "tree/sub/link",
        "tree/sub/run",
    ];
    assert_eq!(names(&found), expected);
    assert_eq!(found[3].0.kind, Kind::Hardlink);

    fs::create_dir(root.join("back")).expect("a directory");
    let bytes = collect(&agent, &Request::CopyOut { path: "/tree".into(), follow: false }).expect("a copy");
    put(&agent, "/back", None, &bytes).expect("unpacked");
    assert_eq!(entries(&bytes), out(&agent, "/back/tree", false).expect("a copy"));
    assert_eq!(fs::read(root.join("back/tree/same")).expect("a file"), big);
    let (a, b) = (root.join("back/tree/big"), root.join("back/tree/same"));
    assert_eq!(fs::metadata(a).expect("there").ino(), fs::metadata(b).expect("there").ino());
}

#[test]
fn paths_mean_what_docker_cp_means() {
    let (agent, root) = agent();
    fs::create_dir(root.join("dir")).expect("a directory");
    fs::write(root.join("dir/file"), "x").expect("a file");
    symlink("dir/file", root.join("link")).expect("a link");
    symlink("/dir", root.join("absolute")).expect("a link");
    assert_eq!(names(&out(&agent, "/dir", false).expect("a copy")), ["dir", "dir/file"]);
    assert_eq!(names(&out(&agent, "/dir/.", false).expect("a copy")), [".", "file"]);
    assert_eq!(out(&agent, "/link", false).expect("a copy")[0].0.kind, Kind::Symlink);
    assert_eq!(names(&out(&agent, "/link", true).expect("a copy")), ["file"]);
    assert_eq!(names(&out(&agent, "/absolute", true).expect("a copy")), ["dir", "dir/file"]);
    assert_eq!(out(&agent, "/nothing", false).expect_err("missing"), ErrorKind::NotFound);

    let found = stat(&agent, "/link", false).expect("there");
    assert_eq!((found.kind, found.link_target.as_deref()), (PathKind::Symlink, Some("dir/file")));
    let found = stat(&agent, "/link", true).expect("there");
    assert_eq!((found.kind, found.size, found.name.as_str()), (PathKind::File, 1, "file"));
    assert_eq!(stat(&agent, "/", false).expect("there").kind, PathKind::Directory);
    assert_eq!(stat(&agent, "/none/x", false), Err(ErrorKind::NotFound));

    assert_eq!(put(&agent, "/none", None, &archive(&[])), Err(ErrorKind::NotFound));
    put(&agent, "/dir", None, &archive(&[file("file", b"new"), file("a/b/c", b"deep")])).expect("unpacked");
    assert_eq!(fs::read(root.join("dir/file")).expect("a file"), b"new");
    assert_eq!(fs::read(root.join("dir/a/b/c")).expect("a file"), b"deep");
}

#[test]
fn owners_are_the_archives_or_the_ones_asked_for() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: only root can give files away");
    }
    let (agent, root) = agent();
    let mut entry = file("file", b"");
    (entry.0.uid, entry.0.gid, entry.0.mode) = (1234, 2345, 0o2755);
    put(&agent, "/", None, &archive(&[entry.clone()])).expect("unpacked");
    let found = fs::metadata(root.join("file")).expect("there");
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1234, 2345, 0o2755));
    put(&agent, "/", Some((0, 7)), &archive(&[entry])).expect("unpacked");
    let found = fs::metadata(root.join("file")).expect("there");
    assert_eq!((found.uid(), found.gid()), (0, 7));
}

#[test]
fn nothing_leaves_the_root() {
    let outside = tempfile::tempdir().expect("a directory beside the root");
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").expect("a file");
    let (agent, root) = agent();
    let place = outside.path().to_str().expect("utf-8");
    let up = "../".repeat(30);
    symlink(&secret, root.join("absolute")).expect("a link");
    symlink(format!("{up}{place}/secret"), root.join("relative")).expect("a link");
    symlink(outside.path(), root.join("directory")).expect("a link");
    for path in ["/absolute", "/relative", "/directory/secret", &format!("/{up}{place}/secret")] {
        assert_eq!(out(&agent, path, true).expect_err(path), ErrorKind::NotFound);
        assert_eq!(stat(&agent, path, true), Err(ErrorKind::NotFound), "{path}");
    }
    let hostile = [
        archive(&[file("../escaped", b"x")]),
        archive(&[file("a/../../escaped", b"x")]),
        archive(&[file(&format!("{up}{place}/escaped"), b"x")]),
        archive(&[link("way", Kind::Symlink, place), file("way/escaped", b"x")]),
        archive(&[link("up", Kind::Symlink, &format!("{up}{place}")), file("up/escaped", b"x")]),
        archive(&[file("directory/escaped", b"x")]),
        archive(&[link("hard", Kind::Hardlink, &format!("{up}{place}/secret"))]),
        archive(&[link("hard", Kind::Hardlink, "directory/secret")]),
        archive(&[link("over", Kind::Symlink, secret.to_str().expect("utf-8")), file("over", b"written")]),
        archive(&[link("node", Kind::Symlink, place), (Entry::new("node", Kind::Directory), b"")]),
    ];
    for bytes in &hostile {
        // Refused or unpacked inside; either way nothing appears or changes outside.
        let _ = put(&agent, "/", None, bytes);
        let left: Vec<_> =
            fs::read_dir(outside.path()).expect("listed").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["secret"]);
        assert_eq!(fs::read(&secret).expect("a file"), b"secret");
        assert_eq!(fs::metadata(&secret).expect("there").nlink(), 1);
    }
    assert_eq!(fs::read(root.join("over")).expect("replaced, not followed"), b"written");
    assert_eq!(put(&agent, "/", None, &hostile[0]), Err(ErrorKind::BadRequest));
    agent.alive();
}

#[test]
fn what_stands_in_the_way_is_told() {
    let (agent, root) = agent();
    fs::create_dir_all(root.join("dir/full")).expect("a directory");
    assert_eq!(put(&agent, "/", None, &archive(&[file("dir", b"x")])), Err(ErrorKind::BadRequest));
    fs::write(root.join("file"), "x").expect("a file");
    let directory = (Entry { mode: 0o755, ..Entry::new("file", Kind::Directory) }, &b""[..]);
    assert_eq!(put(&agent, "/", None, &archive(&[directory])), Err(ErrorKind::BadRequest));
    assert_eq!(put(&agent, "/", None, b"this is no archive at all"), Err(ErrorKind::BadRequest));
    let mut cut = archive(&[file("cut", &[1; 100_000])]);
    cut.truncate(50_000);
    assert!(put(&agent, "/", None, &cut).is_err());
    // A host that goes on sending after the refusal still gets to read it.
    let long = [b"no archive".repeat(100), vec![0; 4 << 20]].concat();
    assert_eq!(put(&agent, "/", None, &long), Err(ErrorKind::BadRequest));
    agent.alive();
}

#[test]
fn an_overlays_upper_directory_is_exported_with_its_marks() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: whiteouts and trusted attributes need root");
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let upper = scratch.path().join("upper");
    fs::create_dir_all(upper.join("opaque")).expect("directories");
    fs::write(upper.join("changed"), "new").expect("a file");
    let whiteout = rustix::fs::mknodat(
        rustix::fs::CWD,
        upper.join("gone"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    );
    let mark =
        |path: &Path, name: &str| rustix::fs::lsetxattr(path, name, b"y", rustix::fs::XattrFlags::empty());
    let marked = mark(&upper.join("opaque"), "trusted.overlay.opaque")
        .and_then(|()| mark(&upper.join("changed"), "trusted.overlay.origin"));
    if let Err(error) = whiteout.and(marked) {
        return eprintln!("SKIPPED: this file system takes no whiteouts or trusted attributes: {error}");
    }
    let agent = Agent::start(&["--upper", upper.to_str().expect("utf-8")]);
    let found = entries(&collect(&agent, &Request::ExportUpper).expect("an export"));
    assert_eq!(names(&found), [".", "changed", "gone", "opaque"]);
    assert!(found[1].0.xattrs.is_empty(), "the overlay's bookkeeping stays behind");
    assert_eq!((found[2].0.kind, found[2].0.device), (Kind::Character, (0, 0)));
    assert_eq!(found[3].0.xattrs, [(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())]);
    let (plain, _) = self::agent();
    assert_eq!(collect(&plain, &Request::ExportUpper).expect_err("none"), ErrorKind::Unsupported);
}
