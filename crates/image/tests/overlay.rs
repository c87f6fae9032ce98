//! What the kernel's overlay shows and what we make of its upper layer are the same tree. Takes
//! root, EROFS, overlayfs and GNU tar; skipped aloud where one is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::tree::{Kind, Limits, Time};
use image::{
    DirOptions, ErofsOptions, MergeOptions, Owner, Spool, Tree, add_dir, merge_upper, merge_upper_of_disk,
    write_erofs,
};

const KEEP: DirOptions = DirOptions { owner: Owner::Keep, ..DirOptions::ROOT };

/// A small generator, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn path(&mut self, top: &Path) -> PathBuf {
        let depth = 1 + self.below(3);
        (0..depth).fold(top.to_owned(), |path, _| path.join(["a", "b", "c", "d"][self.below(4)]))
    }
}

/// Changes something below `top`; what cannot be done is left undone.
fn change(top: &Path, random: &mut Random) {
    let (one, two) = (random.path(top), random.path(top));
    let _ = match random.below(12) {
        0..3 => fs::create_dir_all(&one),
        3..5 => fs::write(&one, format!("{}", random.0)),
        5 => std::os::unix::fs::symlink("../c/d", &one),
        6 => fs::remove_file(&one),
        7 => fs::remove_dir_all(&one),
        8 => fs::hard_link(&one, &two),
        // Mostly directories are moved, whose marks are the difficult ones.
        _ => fs::rename(&one, &two),
    };
}

struct Mounted(Vec<PathBuf>);

impl Mounted {
    fn mount(&mut self, arguments: &[&str], at: &Path) -> bool {
        fs::create_dir_all(at).expect("directory");
        let output = Command::new("mount").args(arguments).arg(at).output();
        let done = output.as_ref().is_ok_and(|output| output.status.success());
        if done {
            self.0.push(at.to_owned());
        } else {
            eprintln!("SKIPPED: mount {arguments:?}: {output:?}");
        }
        done
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for at in self.0.iter().rev() {
            let _ = Command::new("umount").arg(at).status();
        }
    }
}

fn tree_of(dir: &Path, spool: &Spool) -> Tree {
    let mut tree = Tree::new(Limits::default());
    add_dir(&mut tree, spool, dir, "", &KEEP).expect("read");
    tree
}

/// Names, what they are and their metadata, to be read by people when two lists differ.
fn lines(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, id) in tree.walk() {
        let node = tree.get(id).expect("node");
        let what = match node.kind() {
            Kind::File(content) => String::from_utf8(content.to_vec(1 << 20).expect("read")).expect("text"),
            Kind::Dir(_) => "directory".to_owned(),
            other => format!("{other:?}"),
        };
        lines.push(format!("{} {what} {:?}", String::from_utf8_lossy(&path), node.meta));
    }
    lines
}

/// The tree with times of whole seconds.
fn in_seconds(mut tree: Tree) -> Tree {
    let ids: Vec<_> = tree.walk().map(|(_, id)| id).collect();
    for id in ids {
        tree.meta_mut(id).expect("node").mtime.nanos = 0;
    }
    tree
}

/// Whether a directory had been renamed in the overlay; None where this host cannot do it.
fn compare(seed: u64, work: &Path) -> Option<bool> {
    let mut random = Random(seed);
    let mut mounted = Mounted(Vec::new());
    let at = |name: &str| work.join(name);
    let text = |name: &str| at(name).to_str().expect("text").to_owned();
    if !mounted.mount(&["-t", "tmpfs", "tmpfs"], work) {
        return None;
    }
    fs::create_dir(at("disk")).expect("directory");
    for dir in ["start", "disk/upper", "work"] {
        fs::create_dir(at(dir)).expect("directory");
    }
    (0..60).for_each(|_| change(&at("start"), &mut random));
    let spool = Spool::new(&std::env::temp_dir(), 1 << 30).expect("spool");
    let base = tree_of(&at("start"), &spool);
    let options = ErofsOptions { uuid: [0; 16], build_time: Time::from_secs(0) };
    write_erofs(&base, &mut fs::File::create(at("image")).expect("image"), &options).expect("written");
    let layers = format!(
        "lowerdir={},upperdir={},workdir={},xino=on,redirect_dir=on,metacopy=off,index=off",
        text("base"),
        text("disk/upper"),
        text("work")
    );
    if !mounted.mount(&["-t", "erofs", "-o", "loop,ro", &text("image")], &at("base"))
        || !mounted.mount(&["-t", "overlay", "overlay", "-o", &layers], &at("merged"))
    {
        return None;
    }
    (0..60).for_each(|_| change(&at("merged"), &mut random));
    let seen = tree_of(&at("merged"), &spool);
    let tar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--format=posix", "-cC"])
        .arg(at("disk/upper"))
        .arg(".")
        .output();
    let Ok(tar) = tar else {
        eprintln!("SKIPPED: GNU tar cannot be run");
        return None;
    };
    let all_times = MergeOptions { epoch: Time::from_secs(i64::MAX), settle: false };
    let merged = merge_upper(base.clone(), &tar.stdout[..], &spool, &all_times).expect("merged");
    assert_eq!(lines(&merged), lines(&seen), "seed {seed}");
    // The same from a disk, without the archive.
    let image = at("ext4");
    let arguments = ["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-d"];
    let made = Command::new("mke2fs").args(arguments).arg(at("disk")).arg(&image).arg("16M").output();
    let made = made.expect("e2fsprogs is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let disk = std::sync::Arc::new(fs::File::open(&image).expect("disk"));
    let merged = merge_upper_of_disk(base, disk, &spool, &all_times).expect("merged");
    // mke2fs writes whole seconds.
    assert_eq!(lines(&in_seconds(merged)), lines(&in_seconds(seen)), "seed {seed}, from a disk");
    let mark = b"overlay.redirect";
    Some(tar.stdout.windows(mark.len()).any(|part| part == mark))
}

#[test]
fn random_changes_merge_as_the_kernel_shows_them() {
    let dir = tempfile::tempdir().expect("directory");
    let mut renamed = 0;
    for seed in 0..30 {
        match compare(seed, &dir.path().join("work")) {
            Some(mark) => renamed += usize::from(mark),
            None => return,
        }
    }
    assert!(renamed > 5, "only {renamed} of the runs renamed a directory of the base");
}
