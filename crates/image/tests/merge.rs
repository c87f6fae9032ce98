//! An upper layer over a root gives what the overlay showed, settled.

use image::tree::{Item, Kind, Limits, Meta, NodeId, OnSymlink, Time};
use image::{Content, MergeOptions, Spool, Tree, merge_upper};

const EPOCH: Time = Time::from_secs(1000);

fn put(tree: &mut Tree, path: &str, item: Item, secs: i64) {
    let meta = Meta { mtime: Time::from_secs(secs), ..Meta::root_owned(0o755) };
    tree.insert(path, item, meta, OnSymlink::Keep).expect("inserted");
}

fn text(text: &str) -> Item {
    Item::File(Content::bytes(text.as_bytes()))
}

struct Upper(tar::Builder<Vec<u8>>);

impl Upper {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, path: &str, data: &[u8], xattrs: &[(&str, &[u8])]) -> Self {
        let xattrs: Vec<_> =
            xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), *value)).collect();
        let pax = xattrs.iter().map(|(name, value)| (name.as_str(), *value));
        self.0.append_pax_extensions(pax).expect("pax");
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o700);
        header.set_mtime(5000);
        if kind == tar::EntryType::Char {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        self.0.append_data(&mut header, path, data).expect("appended");
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.add(tar::EntryType::Regular, path, data.as_bytes(), &[])
    }

    fn dir(self, path: &str, xattrs: &[(&str, &[u8])]) -> Self {
        self.add(tar::EntryType::Directory, path, b"", xattrs)
    }

    fn gone(self, path: &str) -> Self {
        self.add(tar::EntryType::Char, path, b"", &[])
    }

    fn over(self, base: Tree, settle: bool) -> Result<Tree, image::ArchiveError> {
        let tar = self.0.into_inner().expect("archive");
        let spool = Spool::new(&std::env::temp_dir(), 1 << 30).expect("spool");
        merge_upper(base, &tar[..], &spool, &MergeOptions { epoch: EPOCH, settle })
    }
}

fn read(tree: &Tree, path: &str) -> Option<String> {
    let id: NodeId = tree.lookup(path)?;
    match tree.get(id)?.kind() {
        Kind::File(content) => String::from_utf8(content.to_vec(1 << 20).ok()?).ok(),
        _ => None,
    }
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().skip(1).map(|(path, _)| String::from_utf8(path).unwrap()).collect()
}

#[test]
fn whiteouts_take_names_away_and_opaque_directories_hide() {
    let mut base = Tree::new(Limits::default());
    for path in ["keep", "drop", "dir/a", "dir/b", "opaque/old", "xattr"] {
        put(&mut base, path, text(path), 1);
    }
    let merged = Upper::new()
        .gone("drop")
        .gone("never-was")
        .add(tar::EntryType::Regular, "xattr", b"", &[("trusted.overlay.whiteout", b"y")])
        .gone("dir/a")
        .dir("opaque", &[("trusted.overlay.opaque", b"y"), ("user.kept", b"1")])
        .file("opaque/new", "new")
        .over(base, false)
        .expect("merged");
    assert_eq!(paths(&merged), ["dir", "dir/b", "keep", "opaque", "opaque/new"]);
    let opaque = merged.get(merged.lookup("opaque").unwrap()).unwrap();
    let names: Vec<_> = opaque.meta.xattrs.keys().map(|name| name.to_vec()).collect();
    assert_eq!(names, [b"user.kept".to_vec()]);
}

#[test]
fn whiteouts_may_be_links_to_the_first_of_them() {
    let mut base = Tree::new(Limits::default());
    for path in ["a", "b/c", "keep"] {
        put(&mut base, path, text(path), 1);
    }
    let mut upper = Upper::new().gone("a");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    upper.0.append_link(&mut header, "b/c", "a").expect("appended");
    assert_eq!(paths(&upper.over(base, false).expect("merged")), ["b", "keep"]);
}

#[test]
fn a_layer_may_change_what_a_name_is() {
    let mut base = Tree::new(Limits::default());
    put(&mut base, "usr/lib/x", text("x"), 1);
    put(&mut base, "lib", Item::Symlink(b"usr/lib"[..].into()), 1);
    put(&mut base, "filled/y", text("y"), 1);
    let merged = Upper::new()
        .dir("lib", &[])
        .file("lib/z", "z")
        .file("filled", "now a file")
        .over(base, false)
        .expect("merged");
    assert_eq!(paths(&merged), ["filled", "lib", "lib/z", "usr", "usr/lib", "usr/lib/x"]);
    assert_eq!(read(&merged, "filled").as_deref(), Some("now a file"));
}

#[test]
fn times_are_clamped_and_traces_of_the_run_removed() {
    let mut base = Tree::new(Limits::default());
    put(&mut base, "old", text("old"), 7);
    put(&mut base, "newer", text("newer"), 4000);
    put(&mut base, "var/log/postgresql", Item::Dir, 1);
    let merged = Upper::new()
        .file("etc/machine-id", "0123456789abcdef\n")
        .file("var/log/dpkg.log", "today")
        .file("var/log/postgresql/x.log", "today")
        .file("var/lib/dpkg/status", "kept")
        .file("var/lib/dpkg/status-old", "gone")
        .file("tmp/scratch", "gone")
        .file("var/cache/ldconfig/aux-cache", "gone")
        .over(base, true)
        .expect("merged");
    assert!(merged.walk().all(|(_, id)| merged.get(id).unwrap().meta.mtime <= EPOCH));
    assert_eq!(merged.get(merged.lookup("old").unwrap()).unwrap().meta.mtime, Time::from_secs(7));
    assert_eq!(read(&merged, "etc/machine-id").as_deref(), Some(""));
    assert_eq!(read(&merged, "var/log/dpkg.log").as_deref(), Some(""));
    assert_eq!(read(&merged, "var/log/postgresql/x.log").as_deref(), Some(""));
    assert_eq!(read(&merged, "var/lib/dpkg/status").as_deref(), Some("kept"));
    for gone in ["var/lib/dpkg/status-old", "tmp/scratch", "var/cache/ldconfig/aux-cache"] {
        assert!(merged.lookup(gone).is_none(), "{gone}");
    }
    assert!(merged.lookup("tmp").is_some());
}

#[test]
fn compiled_python_stays_true_to_its_clamped_source() {
    let pyc = |mtime: u32| {
        let mut bytes = b"\xa7\x0d\x0d\x0a\0\0\0\0".to_vec();
        bytes.extend(mtime.to_le_bytes());
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(b"code");
        String::from_utf8_lossy(&bytes).into_owned().into_bytes()
    };
    let mut upper = Upper::new().file("m.py", "abc");
    // 5000 is the time of every file of this layer.
    let bytes =
        [&[0xa7, 0x0d, 0x0d, 0x0a, 0, 0, 0, 0], &5000u32.to_le_bytes()[..], b"\x03\0\0\0code"].concat();
    upper = upper.add(tar::EntryType::Regular, "__pycache__/m.cpython-311.pyc", &bytes, &[]);
    upper = upper.add(tar::EntryType::Regular, "__pycache__/other.cpython-311.pyc", &pyc(9), &[]);
    let merged = upper.over(Tree::new(Limits::default()), true).expect("merged");
    let id = merged.lookup("__pycache__/m.cpython-311.pyc").unwrap();
    let Kind::File(content) = merged.get(id).unwrap().kind() else { panic!("a file") };
    let now = content.to_vec(100).unwrap();
    assert_eq!(now[8..12], (EPOCH.secs as u32).to_le_bytes());
    assert_eq!((&now[..8], &now[12..]), (&bytes[..8], &bytes[12..]));
}

#[test]
fn renamed_directories_bring_what_they_had() {
    let mut base = Tree::new(Limits::default());
    for path in ["a/x", "a/sub/y", "a/sub/z", "other"] {
        put(&mut base, path, text(path), 1);
    }
    base.link("a/sub/x-too", "a/x").expect("linked");
    let redirect = |to: &'static [u8]| [("trusted.overlay.redirect", to)];
    let merged = Upper::new()
        .gone("a")
        .dir("b", &redirect(b"a"))
        .file("b/new", "new")
        .gone("b/x")
        .dir("b/renamed", &redirect(b"sub"))
        .gone("b/sub")
        .gone("b/renamed/y")
        .dir("deep", &[])
        .dir("deep/copy", &redirect(b"/a/sub"))
        .over(base, false)
        .expect("merged");
    assert_eq!(
        paths(&merged),
        [
            "b",
            "b/new",
            "b/renamed",
            "b/renamed/x-too",
            "b/renamed/z",
            "deep",
            "deep/copy",
            "deep/copy/x-too",
            "deep/copy/y",
            "deep/copy/z",
            "other"
        ]
    );
    assert_eq!(read(&merged, "b/renamed/z").as_deref(), Some("a/sub/z"));
    assert_eq!(read(&merged, "deep/copy/x-too").as_deref(), Some("a/x"));
    for bad in [&b"/nowhere"[..], b"../a", b"a/b", b"/../.."] {
        let upper = Upper::new().dir("d", &[("trusted.overlay.redirect", bad)]);
        assert!(upper.over(Tree::new(Limits::default()), false).is_err());
    }
}

#[test]
fn files_whose_data_stayed_below_are_refused() {
    let upper = Upper::new().add(tar::EntryType::Regular, "f", b"", &[("trusted.overlay.metacopy", b"")]);
    let refused = upper.over(Tree::new(Limits::default()), false).expect_err("refused");
    assert!(refused.to_string().contains("metacopy=off"), "{refused}");
}

#[test]
fn directories_that_packages_want_below_run_are_there() {
    let mut base = Tree::new(Limits::default());
    put(&mut base, "etc/passwd", text("root:x:0:0::/:/bin/sh\npostgres:x:101:102::/:/bin/sh\n"), 1);
    put(&mut base, "etc/group", text("root:x:0:\npostgres:x:102:\n"), 1);
    put(&mut base, "run/left-over", text("x"), 1);
    put(&mut base, "run/mysqld/old.pid", text("x"), 1);
    put(&mut base, "var/run", Item::Symlink(b"/run"[..].into()), 1);
    let lines = "# sockets\nd /run/postgresql 2775 postgres postgres - -\nD! /var/run/plain\n\
                 d /run/deep/er 0700 7 8\nd /var/log/other 0755 - -\nL /run/link - - - - /etc\nd\nd /run/../etc/x\n\
                 d /run/%u 0755\nd /run/who 0755 nobody-here -\nd /run/bad 99999 - -\nr! /run/gone\n";
    put(&mut base, "usr/lib/tmpfiles.d/a.conf", text(lines), 1);
    put(&mut base, "usr/lib/tmpfiles.d/masked.conf", text("d /run/masked\n"), 1);
    put(&mut base, "etc/tmpfiles.d/masked.conf", Item::Symlink(b"/dev/null"[..].into()), 1);
    put(&mut base, "usr/lib/tmpfiles.d/README", text("d /run/readme\n"), 1);
    let merged = Upper::new().over(base.clone(), true).expect("merged");
    let below_run: Vec<String> = paths(&merged).into_iter().filter(|path| path.starts_with("run/")).collect();
    assert_eq!(below_run, ["run/deep", "run/deep/er", "run/mysqld", "run/plain", "run/postgresql"]);
    let meta = |path: &str| {
        let meta = &merged.get(merged.lookup(path).unwrap()).unwrap().meta;
        (meta.mode & 0o7777, meta.uid, meta.gid, meta.mtime)
    };
    assert_eq!(meta("run/postgresql"), (0o2775, 101, 102, EPOCH));
    assert_eq!(meta("run/deep/er"), (0o700, 7, 8, EPOCH));
    assert_eq!(meta("run/plain"), (0o755, 0, 0, EPOCH));
    // A root that is only put together is left as it is.
    let merged = Upper::new().over(base, false).expect("merged");
    assert!(paths(&merged).contains(&"run/left-over".to_owned()));
    assert!(merged.lookup("run/postgresql").is_none());
}
