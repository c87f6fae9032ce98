//! What mke2fs and debugfs wrote is what we read; what is damaged is refused, never worse. Takes e2fsprogs, as the
//! build of the guest's parts does.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use image::tree::{Item, Kind, Limits, Meta, OnSymlink, Time};
use image::{
    Content, DirOptions, Ext4, Ext4Error, MergeOptions, Owner, Spool, Tree, add_dir, merge_upper_of_disk,
};
use proptest::prelude::*;

const ALL: MergeOptions = MergeOptions { epoch: Time::from_secs(i64::MAX), settle: false };

/// The features of our disks (xtask, `blank.rs`).
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,\
     uninit_bg,dir_nlink,extra_isize";

struct Work(tempfile::TempDir);

impl Work {
    fn new() -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(work.upper("")).unwrap();
        work
    }

    fn upper(&self, name: &str) -> PathBuf {
        self.0.path().join("root/upper").join(name)
    }

    /// A disk of 64 MiB with what is in `upper`, after `commands` of debugfs.
    fn disk(&self, features: &str, commands: &str) -> PathBuf {
        self.disk_of("64M", features, commands)
    }

    fn disk_of(&self, size: &str, features: &str, commands: &str) -> PathBuf {
        let disk = self.0.path().join("disk");
        let arguments = ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-O", features, "-d"];
        ok(Command::new("mke2fs").args(arguments).arg(self.0.path().join("root")).arg(&disk).arg(size));
        if !commands.is_empty() {
            let list = self.0.path().join("commands");
            fs::write(&list, commands).unwrap();
            ok(Command::new("debugfs").args(["-w", "-f"]).arg(&list).arg(&disk));
        }
        disk
    }

    fn spool(&self) -> Spool {
        Spool::new(self.0.path(), 1 << 30).unwrap()
    }

    fn merged(&self, base: Tree, disk: &Path) -> Result<Tree, Ext4Error> {
        merge_upper_of_disk(base, Arc::new(File::open(disk).unwrap()), &self.spool(), &ALL)
    }
}

fn ok(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("e2fsprogs is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Names, what they are and their metadata, to be read by people when two lists differ. Whole seconds: mke2fs keeps
/// no more.
fn lines(tree: &Tree) -> Vec<String> {
    let line = |(path, id): (Vec<u8>, _)| {
        let node = tree.get(id).unwrap();
        let what = match node.kind() {
            Kind::File(content) => format!("{} bytes {:x?}", content.len(), content.digest().unwrap()),
            Kind::Dir(_) => "directory".to_owned(),
            other => format!("{other:?}"),
        };
        let mut meta = node.meta.clone();
        meta.mtime.nanos = 0;
        format!("{} {what} {} names {meta:?}", String::from_utf8_lossy(&path), node.names())
    };
    tree.walk().map(line).collect()
}

fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().map(|(path, _)| String::from_utf8_lossy(&path).into_owned()).collect()
}

fn fill(work: &Work) {
    let attribute = |path: &Path, value: &[u8]| {
        rustix::fs::setxattr(path, c"user.note", value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    fs::create_dir(work.upper("many")).unwrap();
    // More than one block of a directory, so that it has an index.
    for n in 0..600 {
        fs::write(work.upper(&format!("many/a file with a longer name {n}")), format!("{n}")).unwrap();
    }
    fs::write(work.upper("empty"), "").unwrap();
    fs::write(work.upper("short"), "text\n").unwrap();
    attribute(&work.upper("short"), b"in the inode");
    fs::write(work.upper("other"), "text\n").unwrap();
    attribute(&work.upper("other"), &[7; 1000]);
    fs::hard_link(work.upper("short"), work.upper("the same")).unwrap();
    std::os::unix::fs::symlink("short", work.upper("link")).unwrap();
    std::os::unix::fs::symlink("d/".repeat(500), work.upper("long link")).unwrap();
    ok(Command::new("mkfifo").arg(work.upper("fifo")));
    // Every second block is a hole: more extents than a block of the tree holds.
    let holes = File::create(work.upper("holes")).unwrap();
    for n in 0..800u64 {
        holes.write_all_at(&[n as u8 | 1; 4096], n * 8192).unwrap();
    }
    holes.set_len(800 * 8192 + 5000).unwrap();
}

#[test]
fn a_disk_reads_as_the_directory_that_it_was_made_of() {
    let work = Work::new();
    fill(&work);
    let mut want = Tree::new(Limits::default());
    let keep = DirOptions { owner: Owner::Keep, ..DirOptions::ROOT };
    add_dir(&mut want, &work.spool(), &work.upper(""), "", &keep).unwrap();
    for features in [FEATURES.to_owned(), format!("{FEATURES},64bit,metadata_csum,^uninit_bg")] {
        let got = work.merged(Tree::new(Limits::default()), &work.disk(&features, "")).unwrap();
        for (got, want) in lines(&got).into_iter().zip(lines(&want)) {
            assert_eq!(got, want);
        }
        assert_eq!(paths(&got), paths(&want));
    }
}

#[test]
fn marks_of_an_overlay_and_devices_are_understood() {
    let work = Work::new();
    fs::create_dir(work.upper("opaque")).unwrap();
    fs::write(work.upper("opaque/new"), "").unwrap();
    let disk = work.disk(
        FEATURES,
        "cd upper\nmknod gone c 0 0\nmknod tty c 5 1\nmknod disk b 259 300\n\
         ea_set opaque trusted.overlay.opaque y\nea_set opaque user.kept yes\n\
         sif opaque mtime 4000000000\nsif opaque mtime_extra 2000000001\n",
    );
    let mut base = Tree::new(Limits::default());
    for path in ["gone", "opaque/old", "stays"] {
        let item = Item::File(Content::bytes(&b"old"[..]));
        base.insert(path, item, Meta::root_owned(0o644), OnSymlink::Keep).unwrap();
    }
    let tree = work.merged(base, &disk).unwrap();
    assert_eq!(paths(&tree), ["", "disk", "opaque", "opaque/new", "stays", "tty"]);
    let kind = |path: &str| format!("{:?}", tree.get(tree.lookup(path).unwrap()).unwrap().kind());
    assert_eq!(kind("tty"), "CharDevice(Device { major: 5, minor: 1 })");
    assert_eq!(kind("disk"), "BlockDevice(Device { major: 259, minor: 300 })");
    let meta = &tree.get(tree.lookup("opaque").unwrap()).unwrap().meta;
    // A second before 1970 as its 32 bits have it, in the next age of 2^32 seconds; nanoseconds behind two bits.
    assert_eq!(meta.mtime, Time { secs: 4_000_000_000, nanos: 500_000_000 });
    let xattrs = &meta.xattrs;
    assert_eq!(xattrs.len(), 1, "{xattrs:?}");
    assert_eq!(xattrs.get(&b"user.kept"[..]).map(|value| &value[..]), Some(&b"yes"[..]));
}

#[test]
fn a_disk_that_nobody_wrote_to_changes_nothing() {
    let work = Work::new();
    fs::remove_dir(work.upper("")).unwrap();
    let tree = work.merged(Tree::new(Limits::default()), &work.disk(FEATURES, "")).unwrap();
    assert_eq!(paths(&tree), [""]);
}

#[test]
fn what_only_a_kernel_can_read_is_told_apart() {
    let work = Work::new();
    let unknown = |disk: &Path| Ext4::open(Arc::new(File::open(disk).unwrap())).err().unwrap().to_string();
    let played = work.disk(FEATURES, "feature needs_recovery\n");
    assert!(unknown(&played).contains("a journal to be played back"));
    let inline = work.disk(&format!("{FEATURES},inline_data"), "");
    assert!(unknown(&inline).contains("features"));
    File::options().write(true).open(&played).unwrap().write_all_at(&[0; 2048], 0).unwrap();
    assert!(unknown(&played).contains("magic"));
    assert!(matches!(Ext4::open(Arc::new(vec![0; 100])), Err(Ext4Error::Damaged { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Reads all of a disk of which some words are others.
    #[test]
    fn damage_is_an_error_at_worst(hits in proptest::collection::vec((0usize..1 << 20, any::<u32>()), 1..60)) {
        let (disk, used) = small();
        let mut disk = disk.clone();
        for (at, word) in hits {
            let at = used[at % used.len()] * 64 + at % 16 * 4;
            // Half of the time a small number, which is a likelier address.
            let word = if word & 1 == 0 { word % 20_000 } else { word };
            disk[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let work = Work::new();
        let limits = Limits { bytes: 1 << 30, ..Limits::default() };
        let spool = Spool::new(work.0.path(), 64 << 20).unwrap();
        let _ = merge_upper_of_disk(Tree::new(limits), Arc::new(disk), &spool, &ALL);
    }
}

/// A small filled disk, and which pieces of 64 bytes of it are structure: neither nothing nor a file's contents.
fn small() -> &'static (Vec<u8>, Vec<usize>) {
    static SMALL: std::sync::OnceLock<(Vec<u8>, Vec<usize>)> = std::sync::OnceLock::new();
    SMALL.get_or_init(|| {
        let work = Work::new();
        fs::create_dir_all(work.upper("a/b")).unwrap();
        fs::write(work.upper("a/b/c"), [1; 9000]).unwrap();
        std::os::unix::fs::symlink("short", work.upper("link")).unwrap();
        let holes = File::create(work.upper("holes")).unwrap();
        for n in 0..400u64 {
            holes.write_all_at(&[1; 4096], n * 8192).unwrap();
        }
        let disk = work.disk_of(
            "4M",
            &FEATURES.replace("has_journal,", ""),
            "cd upper\nmknod gone c 0 0\nea_set a user.x y\n",
        );
        let mut disk = fs::read(disk).unwrap();
        // All that is used of it lies at its beginning.
        let end = disk.chunks(4096).rposition(|block| block.iter().any(|byte| *byte != 0)).unwrap();
        disk.truncate((end + 1) * 4096);
        let plain = |piece: &[u8]| piece.iter().all(|byte| *byte == 0) || piece.iter().all(|byte| *byte == 1);
        let used = (0..disk.len() / 64).filter(|n| !plain(&disk[n * 64..][..64])).collect();
        (disk, used)
    })
}
