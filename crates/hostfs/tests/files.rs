//! What a guest does with files, and what the host sees of it.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use common::*;

#[test]
fn files_are_made_written_and_read_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("there"), "from the host").unwrap();
    let mut g = Guest::on(dir.path());
    let there = g.find("there").unwrap();
    assert_eq!((there.size, there.mode & 0o170_000), (13, 0o100_000));
    let (fh, _) = g.open(there.node, RDONLY).unwrap();
    assert_eq!(g.read(fh, 5, 100).unwrap(), b"the host");
    assert_eq!(g.read(fh, 13, 100).unwrap(), b"");
    assert_eq!(g.write(fh, 0, b"x"), Err(EBADF), "it is open for reading");
    let (made, fh) = g.create(TOP, "made", RDWR, 0o100_640).unwrap();
    assert_eq!(g.write(fh, 0, b"from the guest"), Ok(14));
    assert_eq!(g.read(fh, 0, 4).unwrap(), b"from");
    g.release(fh);
    assert_eq!(g.read(fh, 0, 4), Err(EBADF));
    let path = dir.path().join("made");
    assert_eq!(fs::read(&path).unwrap(), b"from the guest");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    g.set(made.node, 1 << 3, 4, 0, 0).unwrap();
    assert_eq!((fs::read(&path).unwrap(), g.stat(made.node).unwrap().0), (b"from".to_vec(), 4));
    let (fh, _) = g.open(made.node, WRONLY | APPEND).unwrap();
    g.write(fh, 0, b"+").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"from+");
    g.open(made.node, WRONLY | TRUNC).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn a_name_that_is_gone_or_replaced_is_stale_and_found_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, "1").unwrap();
    let mut g = Guest::on(dir.path());
    let old = g.find("a").unwrap();
    fs::write(dir.path().join("b"), "22").unwrap();
    fs::rename(dir.path().join("b"), &path).unwrap();
    assert_eq!(g.stat(old.node), Err(ESTALE));
    assert_eq!(g.open(old.node, RDONLY), Err(ESTALE));
    let new = g.find("a").unwrap();
    assert_ne!(new.node, old.node);
    assert_eq!(g.stat(new.node).unwrap().0, 2);
    fs::remove_file(&path).unwrap();
    assert_eq!(g.stat(new.node), Err(ESTALE));
    assert_eq!(g.find("a").err(), Some(ENOENT));
}

#[test]
fn an_open_file_outlives_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (file, fh) = g.create(TOP, "a", RDWR, 0o100_600).unwrap();
    g.write(fh, 0, b"kept").unwrap();
    g.unlink(TOP, "a").unwrap();
    assert_eq!(g.read(fh, 0, 9).unwrap(), b"kept");
    assert_eq!(g.stat(file.node).unwrap().0, 4, "fstat asks without a handle");
    g.set(file.node, 1 << 3, 2, 0, 0).unwrap();
    assert_eq!(g.read(fh, 0, 9).unwrap(), b"ke");
    g.release(fh);
    assert_eq!(g.stat(file.node), Err(ESTALE));
}

#[test]
fn renames_carry_what_the_guest_knows_along() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let a = g.mkdir(TOP, "a", 0o755).unwrap();
    let b = g.mkdir(TOP, "b", 0o700).unwrap();
    let (file, _) = g.create(a.node, "f", RDWR, 0o100_600).unwrap();
    g.rename(TOP, "a", b.node, "moved", 0).unwrap();
    assert!(g.stat(file.node).is_ok(), "below what moved");
    g.rename(a.node, "f", TOP, "g", 0).unwrap();
    fs::write(dir.path().join("g"), "123").unwrap();
    assert_eq!(g.stat(file.node).unwrap().0, 3);
    let (other, fh) = g.create(TOP, "h", RDWR, 0o100_600).unwrap();
    g.release(fh);
    assert_eq!(g.rename(TOP, "g", TOP, "h", 1), Err(17), "RENAME_NOREPLACE");
    g.rename(TOP, "g", TOP, "h", 2).unwrap();
    assert_eq!((g.stat(file.node).unwrap().0, g.stat(other.node).unwrap().0), (3, 0), "RENAME_EXCHANGE");
    assert_eq!(g.rename(TOP, "g", TOP, "h", 4), Err(EINVAL), "a whiteout is a device");
    g.rename(TOP, "h", TOP, "g", 0).unwrap();
    assert_eq!(g.stat(other.node), Err(ESTALE), "replaced");
    assert_eq!(g.stat(file.node).unwrap().0, 3);
}

#[test]
fn hard_links_are_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (file, fh) = g.create(TOP, "a", RDWR, 0o100_600).unwrap();
    g.write(fh, 0, b"x").unwrap();
    g.release(fh);
    let link = g.link(file.node, TOP, "b").unwrap();
    assert_eq!((link.node, link.ino), (file.node, file.ino));
    g.unlink(TOP, "b").unwrap();
    assert_eq!(g.stat(file.node), Err(ESTALE), "until it is looked up by its other name");
    assert_eq!(g.lookup(TOP, "a").unwrap().size, 1);
}

#[test]
fn links_are_text_to_the_host() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let target = outside.path().to_str().unwrap();
    let link = g.symlink(TOP, "out", target).unwrap();
    assert_eq!(link.mode & 0o170_000, 0o120_000);
    assert_eq!(g.ask(5, link.node, &[]).unwrap(), target.as_bytes());
    assert!(g.lookup(link.node, "secret").is_err(), "no walk goes through a link");
    assert_eq!(g.open(link.node, RDONLY), Err(ENXIO));
    assert!(g.mkdir(link.node, "d", 0o755).is_err());
    assert!(g.create(link.node, "f", RDWR, 0o600).is_err());
    assert!(g.create(TOP, "out", RDWR, 0o600).is_err(), "nor does making a file");
    g.set(link.node, 1, 0, 0o777, 0).unwrap_err();
    // A directory that the host turns into a link to elsewhere.
    let sub = g.mkdir(TOP, "sub", 0o755).unwrap();
    fs::remove_dir(dir.path().join("sub")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("sub")).unwrap();
    assert_eq!(g.lookup(sub.node, "secret").err(), Some(ESTALE));
    assert_eq!(g.create(sub.node, "new", RDWR, 0o600).err(), Some(ESTALE));
    assert_eq!(g.unlink(sub.node, "secret"), Err(ESTALE));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn names_that_lead_elsewhere_are_no_names() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    let mut g = Guest::on(dir.path());
    let sub = g.find("d").unwrap();
    let long = "x".repeat(256);
    for (name, error) in [("..", EINVAL), (".", EINVAL), ("", EINVAL), ("a/b", EINVAL), (&long, ENAMETOOLONG)]
    {
        assert_eq!(g.lookup(sub.node, name).err(), Some(error), "{name}");
        assert_eq!(g.mkdir(sub.node, name, 0o755).err(), Some(error), "{name}");
        assert_eq!(g.symlink(sub.node, name, "x").err(), Some(error), "{name}");
        assert_eq!(g.unlink(sub.node, name), Err(error), "{name}");
        assert_eq!(g.rename(TOP, "d", sub.node, name, 0), Err(error), "{name}");
    }
    assert_eq!(g.ask(1, sub.node, b"no end"), Err(EINVAL));
}

#[test]
fn special_files_are_not_opened_and_devices_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let pipe = g.mknod(TOP, "pipe", 0o010_644).unwrap();
    assert_eq!(pipe.mode & 0o170_000, 0o010_000);
    for flags in [RDONLY, WRONLY, RDWR] {
        assert_eq!(g.open(pipe.node, flags), Err(ENXIO), "and nothing waits");
    }
    assert!(g.mknod(TOP, "socket", 0o140_755).is_ok());
    for (name, kind) in [("char", 0o020_644), ("block", 0o060_644)] {
        assert_eq!(g.mknod(TOP, name, kind).err(), Some(EPERM));
    }
    assert!(g.mknod(TOP, "file", 0o100_600).is_ok());
    assert_eq!(g.list(TOP, 4096, false), ["file", "pipe", "socket"]);
}

#[test]
fn no_set_user_id_bit_is_ever_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (file, _) = g.create(TOP, "a", RDWR, 0o106_755).unwrap();
    g.mkdir(TOP, "d", 0o7777).unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a"), mode("d")), (0o755, 0o1777));
    g.set(file.node, 1, 0, 0o106_711, 0).unwrap();
    assert_eq!(mode("a"), 0o711);
    g.mknod(TOP, "n", 0o104_711).unwrap();
    assert_eq!(mode("n"), 0o711);
}

/// A server that becomes the asking user and keeps its groups gives files of a group that this user is not in, with the
/// set-group-id bit (CVE-2022-0358). Ours never becomes anybody, and never sets the bit.
#[test]
fn a_directory_that_hands_its_group_down_hands_down_no_rights() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2777)).unwrap();
    assert_eq!(fs::metadata(&shared).unwrap().mode() & 0o7000, 0o2000, "this host has such directories");
    let mut g = Guest::on(dir.path());
    let parent = g.find("shared").unwrap();
    g.uid = 33; // and of that group
    let (made, fh) = g.create(parent.node, "tool", RDWR, 0o102_775).unwrap();
    g.write(fh, 0, b"#!").unwrap();
    g.set(made.node, 1, 0, 0o102_775, 0).unwrap();
    g.mknod(parent.node, "other", 0o102_775).unwrap();
    for name in ["tool", "other"] {
        let meta = fs::metadata(shared.join(name)).unwrap();
        assert_eq!(meta.mode() & 0o6000, 0, "{name}");
        let root = fs::metadata(dir.path()).unwrap().uid() == 0;
        assert!(!root || meta.uid() == 33, "{name} is the asking user's");
        assert_eq!(meta.gid(), fs::metadata(&shared).unwrap().gid(), "{name} is of the directory's group");
    }
}

#[test]
fn who_runs_this_is_the_guests_root() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (file, _) = g.create(TOP, "a", RDWR, 0o100_600).unwrap();
    assert_eq!(file.uid, 0);
    assert_eq!(g.set(file.node, 1 << 1, 0, 0, 0), Ok(()), "chown to oneself");
    let root = fs::metadata(dir.path().join("a")).unwrap().uid() == 0;
    assert_eq!(g.set(file.node, 1 << 1, 0, 0, 33), if root { Ok(()) } else { Err(EPERM) });
    assert_eq!(g.set(file.node, 1 << 1, 0, 0, u32::MAX), Err(if root { EINVAL } else { EPERM }));
    g.uid = 33;
    let (file, _) = g.create(TOP, "b", RDWR, 0o100_600).unwrap();
    assert_eq!(file.uid, if root { 33 } else { 0 });
}

#[test]
fn times_are_set() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (file, _) = g.create(TOP, "a", RDWR, 0o100_600).unwrap();
    g.set(file.node, 1 << 4 | 1 << 5, 0, 0, 0).unwrap();
    let meta = fs::metadata(dir.path().join("a")).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()), (5, 7, 6, 8));
    g.set(file.node, 1 << 8, 0, 0, 0).unwrap();
    let meta = fs::metadata(dir.path().join("a")).unwrap();
    assert!(meta.atime() == 5 && meta.mtime() > 1_000_000_000);
}

#[test]
fn a_read_only_folder_is_not_written_whatever_the_guest_says() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "1").unwrap();
    let mut g = Guest::new(&[(dir.path(), "/srv", true)]);
    let a = g.find("a").unwrap();
    let (fh, _) = g.open(a.node, RDONLY).unwrap();
    assert_eq!(g.read(fh, 0, 9).unwrap(), b"1");
    for flags in [WRONLY, RDWR, TRUNC] {
        assert_eq!(g.open(a.node, flags), Err(EROFS));
    }
    assert_eq!(g.write(fh, 0, b"x"), Err(EROFS));
    assert_eq!(g.create(TOP, "b", RDWR, 0o600).err(), Some(EROFS));
    assert_eq!(g.mkdir(TOP, "b", 0o755).err(), Some(EROFS));
    assert_eq!(g.mknod(TOP, "b", 0o100_600).err(), Some(EROFS));
    assert_eq!(g.symlink(TOP, "b", "a").err(), Some(EROFS));
    assert_eq!(g.link(a.node, TOP, "b").err(), Some(EROFS));
    assert_eq!(g.unlink(TOP, "a"), Err(EROFS));
    assert_eq!(g.rename(TOP, "a", TOP, "b", 0), Err(EROFS));
    for valid in [1, 1 << 1, 1 << 3, 1 << 5, 1 << 8] {
        assert_eq!(g.set(a.node, valid, 0, 0o777, 0), Err(EROFS));
    }
    let mut fallocate = u64s(&[fh, 0, 100]);
    fallocate.extend(u32s(&[0, 0]));
    assert_eq!(g.ask(43, a.node, &fallocate), Err(EROFS));
    assert_eq!(g.ask(47, a.node, &u64s(&[fh, 0, a.node, fh, 0, 1, 0])), Err(EROFS));
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"1");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn large_directories_are_listed_whole_in_any_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected: Vec<String> = (0..3000).map(|i| format!("file-{i}-{}", "x".repeat(i % 40))).collect();
    expected.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
    expected.sort();
    let mut g = Guest::on(dir.path());
    for (size, plus) in [(4096, false), (512, true), (131_072, true), (1000, false)] {
        assert_eq!(g.list(TOP, size, plus), expected, "{size} {plus}");
    }
    let fh = g.opendir(TOP).unwrap();
    let listed = g.readdir(fh, 0, 4096, true).unwrap();
    for (name, node) in listed.names.iter().zip(&listed.nodes) {
        match name.as_str() {
            "." | ".." => assert_eq!(*node, 0),
            _ => assert_eq!(g.stat(*node).unwrap().0, 0),
        }
    }
    let again = g.readdir(fh, 0, 4096, false).unwrap();
    assert_eq!(again.names[..2], listed.names[..2], "rewound");
}

#[test]
fn the_guests_pages_are_kept_exactly_while_the_content_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, "1").unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let age = |path: &std::path::Path| {
        fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap()
    };
    age(&path);
    let mut g = Guest::on(dir.path());
    let a = g.find("a").unwrap();
    let keeps = |g: &mut Guest| {
        let (fh, keep) = g.open(a.node, RDWR).unwrap();
        g.release(fh);
        keep
    };
    // The change time is now: what follows within a tick could look the same.
    assert!(!keeps(&mut g) && !keeps(&mut g), "a fresh change is not told from the next");
    let system = std::path::Path::new("/usr/bin/env");
    let mut g = Guest::new(&[(system.parent().unwrap(), "/srv", true)]);
    let env = g.find("env").unwrap();
    assert!(!g.open(env.node, RDONLY).unwrap().1, "nothing is known at first");
    assert!(g.open(env.node, RDONLY).unwrap().1, "nothing changed");
}

#[test]
fn a_file_alone_can_be_shared_and_its_folder_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conf");
    fs::write(&path, "1").unwrap();
    fs::write(dir.path().join("other"), "secret").unwrap();
    let mut g = Guest::new(&[(&path, "/etc/conf", false)]);
    let file = g.lookup(1, "0").unwrap();
    assert_eq!((file.size, file.mode & 0o170_000), (1, 0o100_000));
    assert!(g.lookup(file.node, "other").is_err());
    assert!(g.mkdir(file.node, "d", 0o755).is_err());
    let (fh, _) = g.open(file.node, RDWR).unwrap();
    g.write(fh, 0, b"22").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"22");
    // What editors do: a new file under the old name.
    fs::write(dir.path().join("conf~"), "333").unwrap();
    fs::rename(dir.path().join("conf~"), &path).unwrap();
    assert_eq!(g.stat(file.node).unwrap().0, 3);
    let (fh, keep) = g.open(file.node, RDONLY).unwrap();
    assert_eq!((g.read(fh, 0, 9).unwrap(), keep), (b"333".to_vec(), false));
}

#[test]
fn the_root_holds_the_folders_and_nothing_can_be_made_there() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut g = Guest::new(&[(a.path(), "/a", false), (b.path(), "/b", false)]);
    assert_eq!(g.list(1, 4096, false), ["0", "1"]);
    assert_eq!(g.list(1, 4096, true), ["0", "1"]);
    assert_eq!(g.lookup(1, "2").err(), Some(ENOENT));
    assert_eq!(g.stat(1).unwrap().1, 0o040_555);
    assert_eq!(g.mkdir(1, "x", 0o755).err(), Some(EPERM));
    assert_eq!(g.unlink(1, "0"), Err(EPERM));
    assert!(g.ask(17, 1, &[]).is_ok() && g.ask(17, TOP, &[]).is_ok(), "STATFS");
    let (file, _) = g.create(TOP, "f", RDWR, 0o600).unwrap();
    assert_eq!(g.rename(TOP, "f", TOP + 1, "f", 0), Err(EXDEV));
    assert_eq!(g.link(file.node, TOP + 1, "f").err(), Some(EXDEV));
    assert_eq!(g.ask(22, TOP, &[0; 16]), Err(ENOSYS), "GETXATTR");
}

#[test]
fn data_and_holes_space_and_copies() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (_, fh) = g.create(TOP, "a", RDWR, 0o600).unwrap();
    g.write(fh, 1 << 20, b"end").unwrap();
    let mut seek = u64s(&[fh, 0]);
    seek.extend(u32s(&[4, 0]));
    assert!(at_u64(&g.ask(46, TOP, &seek).unwrap(), 0) <= 1 << 20, "the first hole");
    let mut allocate = u64s(&[fh, 0, 2 << 20]);
    allocate.extend(u32s(&[0, 0]));
    assert_eq!(g.ask(43, TOP, &allocate).map(drop), Ok(()));
    assert_eq!(fs::metadata(dir.path().join("a")).unwrap().len(), 2 << 20);
    let (_, to) = g.create(TOP, "b", RDWR, 0o600).unwrap();
    let copied = g.ask(47, TOP, &u64s(&[fh, 1 << 20, TOP, to, 0, 3, 0])).unwrap();
    assert_eq!((at_u32(&copied, 0), fs::read(dir.path().join("b")).unwrap()), (3, b"end".to_vec()));
    let mut sync = u64s(&[fh]);
    sync.extend(u32s(&[1, 0]));
    assert!(g.ask(20, TOP, &sync).is_ok());
}

/// Read calls of this thread so far (proc(5), /proc/pid/io), this look included; nothing where the host does not count.
fn read_calls() -> Option<u64> {
    let counts = fs::read("/proc/thread-self/io").ok()?;
    let counts = String::from_utf8(counts).ok()?;
    counts.lines().find_map(|line| line.strip_prefix("syscr: ")?.trim().parse().ok())
}

#[test]
fn a_file_that_is_shorter_than_asked_for_is_read_by_one_call() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, vec![b'a'; 100]).unwrap();
    let mut g = Guest::on(dir.path());
    let node = g.find("f").unwrap().node;
    let (fh, _) = g.open(node, RDWR).unwrap();
    if let (Some(first), Some(second)) = (read_calls(), read_calls()) {
        assert_eq!(g.read(fh, 0, 4096).unwrap().len(), 100);
        assert_eq!(read_calls().unwrap() - second - (second - first), 1, "calls");
    } else {
        eprintln!("skipped: this host does not count read calls");
    }
    // Its end is where it is now, not where it was.
    fs::write(&path, vec![b'b'; 150]).unwrap();
    assert_eq!(g.read(fh, 0, 4096).unwrap(), vec![b'b'; 150]);
    g.write(fh, 150, &[b'c'; 50]).unwrap();
    assert_eq!(g.read(fh, 100, 4096).unwrap(), [vec![b'b'; 50], vec![b'c'; 50]].concat());
    fs::write(&path, "short").unwrap();
    assert_eq!(g.read(fh, 0, 4096).unwrap(), b"short");
    // Opened with its content gone.
    let (fh, _) = g.open(node, RDWR | TRUNC).unwrap();
    assert_eq!(g.read(fh, 0, 4096).unwrap(), b"");
    g.write(fh, 0, &[b'd'; 10]).unwrap();
    assert_eq!(g.read(fh, 0, 4096).unwrap(), vec![b'd'; 10]);
}
