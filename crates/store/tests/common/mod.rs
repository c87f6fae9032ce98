//! A store and files for it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use artifact::{Digest, MachineFileWriter, SectionHead, SectionKind, VerifyOptions};
use store::Store;

/// A directory with a store in it.
pub struct Home {
    dir: tempfile::TempDir,
    pub store: Store,
}

impl Home {
    pub fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Home { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A machine file in the user's hands.
    pub fn machine(&self, name: &str, seed: u8) -> (PathBuf, Digest) {
        let path = self.path(name);
        let id = write_machine(&path, seed, 300_000);
        (path, id)
    }
}

/// A base of about `len` bytes.
pub fn write_machine(path: &Path, seed: u8, len: usize) -> Digest {
    let mut writer = MachineFileWriter::create(path).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::Spec, 1), &[seed]).unwrap();
    let bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8 ^ seed).collect();
    writer.add_bytes(SectionHead::new(SectionKind::RootImage, 1), &bytes).unwrap();
    writer.finish().unwrap().id
}

/// Every object of the store is whole and has its right name; how many there are.
pub fn check_objects(store: &Store) -> usize {
    let ids = store.ids().unwrap();
    for id in &ids {
        let machine = store.pin(id).unwrap().open().unwrap();
        machine.verify_all(VerifyOptions::default()).unwrap();
        assert_eq!(machine.id(), *id);
    }
    let names = files(&store.root().join("objects"));
    assert_eq!(names, ids.iter().map(Digest::to_string).collect::<Vec<_>>());
    ids.len()
}

/// The names in a directory, sorted; none where it does not exist.
pub fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Sets the times at which a file was used and changed.
pub fn set_times(path: &Path, times: FileTimes) {
    File::open(path).unwrap().set_times(times).unwrap();
}

/// This test binary once more, running only the test `name`, which takes `SMOLVM_TEST_ARGS` as its orders.
pub fn child(name: &str, args: &[&str]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("SMOLVM_TEST_ARGS", args.join("\n"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The orders, if this process is a child.
pub fn orders() -> Option<Vec<String>> {
    let args = std::env::var("SMOLVM_TEST_ARGS").ok()?;
    Some(args.split('\n').map(str::to_owned).collect())
}
