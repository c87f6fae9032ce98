//! A full disk: while building, importing, snapshotting, freezing, running. On small tmpfs mounts,
//! which only root can make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::{Home, text};

/// A file system of its own, unmounted on drop.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, mib: u32) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let size = format!("size={mib}m,mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(&at).stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("skipped: mounting a small file system needs root");
        }
        mounted.then_some(Self(at))
    }

    fn resize(&self, mib: u32) {
        let size = format!("remount,size={mib}m");
        assert!(Command::new("mount").args(["-o", &size]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn refused(home: &Home, args: &[&str]) -> String {
    let said = home.fails(args, 125);
    assert!(
        said.contains("space") || said.contains("room") || said.contains("is the disk full"),
        "{args:?}: {said}"
    );
    assert_eq!(home.leftovers(), Vec::<PathBuf>::new(), "{args:?}");
    said
}

/// Refused before anything was written, with what is needed and free, and what to do.
fn refused_at_once(home: &Home, args: &[&str]) {
    let said = refused(home, args);
    for words in ["are needed", "are free", "smolvm prune"] {
        assert!(said.contains(words), "{args:?}: {said}");
    }
}

fn empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn where_the_file_goes() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["build", "-q", "-o", "y.smolmachine"]);
    let Some(small) = Small::mount(home.path("small"), 4) else { return };
    let said = refused(&home, &["build", "-q", "-o", "small/x.smolmachine"]);
    assert!(said.contains("small/x.smolmachine"), "{said}");
    assert!(empty(&small.0));
    home.ok(&["run", "-d", "--name", "m"]);
    home.ok(&["exec", "m", "sh", "-c", "echo kept >/file"]);
    let said = refused(&home, &["snapshot", "m", "-o", "small/s.smolmachine"]);
    assert!(said.contains("small/s.smolmachine"), "{said}");
    assert!(empty(&small.0));
    refused_at_once(&home, &["snapshot", "m", "-o", "small/s.smolmachine"]);
    home.ok(&["delta", "create", "x.smolmachine", "y.smolmachine", "-o", "d"]);
    refused_at_once(&home, &["delta", "apply", "x.smolmachine", "d", "-o", "small/y.smolmachine"]);
    assert!(empty(&small.0));
    // The machine went on.
    assert_eq!(home.ok(&["exec", "m", "cat", "/file"]), "kept\n");
    small.resize(300);
    home.ok(&["snapshot", "-q", "m", "-o", "small/s.smolmachine"]);
    let whole = fs::read(home.path("small/s.smolmachine")).unwrap();
    // The old file stays when there is no room for a new one.
    small.resize(whole.len() as u32 / (1 << 20) + 2);
    refused(&home, &["snapshot", "m", "-o", "small/s.smolmachine"]);
    assert!(fs::read(home.path("small/s.smolmachine")).unwrap() == whole);
    home.ok(&["rm", "-f", "m"]);
}

#[test]
fn where_smolvm_keeps_things() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    let len = fs::metadata(home.path("x.smolmachine")).unwrap().len() as u32 / (1 << 20);
    fs::rename(home.path("home"), home.path("first-home")).unwrap();
    let Some(small) = Small::mount(home.path("home"), len / 2) else { return };
    // An import knows beforehand what it needs.
    for args in [&["import", "x.smolmachine"][..], &["run", "./x.smolmachine", "--", "true"]] {
        refused_at_once(&home, args);
        let said = refused(&home, args);
        assert!(said.contains("x.smolmachine"), "{said}");
    }
    let objects = |home: &Home| home.ok(&["images", "--json"]);
    assert_eq!(objects(&home).trim(), "[]");
    refused(&home, &["run", "--", "true"]);
    refused(&home, &["build", "-q"]);
    home.ok(&["prune", "-a"]);
    small.resize(len + 8);
    // Room for the file, and then none for what freezing would write.
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    home.ok(&["exec", "m", "sh", "-c", "echo kept >/file"]);
    refused_at_once(&home, &["freeze", "m"]);
    assert_eq!(home.ok(&["exec", "m", "cat", "/file"]), "kept\n");
    // What the guest would take, and not find room for.
    fs::File::create(home.path("large")).unwrap().set_len(12 << 20).unwrap();
    refused_at_once(&home, &["cp", "large", "m:/root/large"]);
    home.ok(&["cp", "large", "m:/dev/shm/large"]);
    home.ok(&["exec", "m", "rm", "/dev/shm/large"]);
    assert_eq!(home.ok(&["exec", "m", "sh", "-c", "echo more >>/file; sync; cat /file"]), "kept\nmore\n");
    // What the guest writes to its disk fails in the guest, and the machine lives.
    let output = home.run(&["exec", "m", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=64 conv=fsync"]);
    assert_ne!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(home.ok(&["exec", "m", "echo", "alive"]), "alive\n");
    small.resize(500);
    home.ok(&["rm", "-f", "m"]);
    assert_eq!(home.ok(&["run", "./x.smolmachine", "--", "echo", "room"]), "room\n");
}
