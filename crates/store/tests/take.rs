//! Moving a file into the store.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use artifact::{Digest, MachineFile, VerifyOptions};
use common::{Home, check_objects, child, files, orders, write_machine};
use store::{CheckOptions, Error, Fault, ImportOptions, Origin, Store, Taken};

fn take(store: &Store, path: &Path) -> Result<Taken, Error> {
    store.take_over(path, ImportOptions::default())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[test]
fn the_file_itself_becomes_the_object() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let before = inode(&path);
    let taken = take(&home.store, &path).unwrap();
    // Until the end it has its old name.
    assert_eq!((taken.pin().id(), inode(&path)), (id, before));
    assert!(taken.finish().unwrap());
    assert!(!path.exists());
    let object = fs::metadata(home.store.object_path(&id)).unwrap();
    assert_eq!((object.ino(), object.nlink(), object.mode() & 0o7777), (before, 1, 0o400));
    assert_eq!(check_objects(&home.store), 1);
    assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
}

#[test]
fn what_others_may_still_write_is_copied() {
    let home = Home::new();
    let (path, id) = home.machine("written", 1);
    let writer = File::options().write(true).open(&path).unwrap();
    let (mode, before) = (fs::metadata(&path).unwrap().mode(), inode(&path));
    let taken = take(&home.store, &path).unwrap();
    assert_ne!(inode(&home.store.object_path(&id)), before);
    assert_eq!(fs::metadata(&path).unwrap().mode(), mode);
    // What is done to it changes nothing.
    std::os::unix::fs::FileExt::write_all_at(&writer, b"late", 9000).unwrap();
    assert_eq!(check_objects(&home.store), 1);
    // It is another file by now, and stays.
    assert!(!taken.finish().unwrap());
    assert!(path.exists());

    let (path, id) = home.machine("two-names", 2);
    fs::hard_link(&path, home.path("other")).unwrap();
    assert!(take(&home.store, &path).unwrap().finish().unwrap());
    assert_ne!(inode(&home.store.object_path(&id)), inode(&home.path("other")));
    assert!(!path.exists());
    assert_eq!(check_objects(&home.store), 2);
}

#[test]
fn a_file_that_is_there_already_and_one_from_another_file_system() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    home.store.import(&path).unwrap();
    assert!(take(&home.store, &path).unwrap().finish().unwrap());
    assert!(!path.exists());
    let elsewhere = tempfile::tempdir_in("/dev/shm");
    let Some(elsewhere) = elsewhere.ok().filter(|dir| device(dir.path()) != device(home.store.root())) else {
        eprintln!("SKIPPED: /dev/shm is no other file system here");
        return;
    };
    let path = elsewhere.path().join("b");
    let other = write_machine(&path, 2, 300_000);
    assert!(take(&home.store, &path).unwrap().finish().unwrap());
    assert!(!path.exists() && id != other);
    assert_eq!(check_objects(&home.store), 2);
}

fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

#[test]
fn what_is_damaged_or_no_file_stays_as_it_is() {
    let home = Home::new();
    let (path, _) = home.machine("bad", 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[200_000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = take(&home.store, &path).unwrap_err().to_string();
    assert!(error.contains("damaged in section root-image"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    let link = home.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = take(&home.store, &link).unwrap_err();
    assert!(matches!(error, Error::NotMovable { .. }), "{error}");
    assert!(take(&home.store, &home.path("none")).is_err());
    assert_eq!(check_objects(&home.store), 0);
}

#[test]
fn a_move_that_was_cut_off_is_finished_by_another_or_parted() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let before = mode(&path);
    assert_ne!(before, 0o400);
    let cut_off = || drop(take(&home.store, &path).unwrap());
    cut_off();
    let found = home.store.check(CheckOptions::default()).unwrap();
    assert_eq!(found.iter().map(|f| &f.fault).collect::<Vec<_>>(), [&Fault::Linked]);
    let repaired = home.store.check(CheckOptions { repair: true, progress: None }).unwrap();
    assert!(repaired.iter().all(|finding| finding.mended));
    assert_ne!(inode(&path), inode(&home.store.object_path(&id)));
    assert_eq!(mode(&path), before, "the user's file is as it was");
    assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
    // What is done to the user's file now is nothing to the store.
    fs::write(&path, b"other").unwrap();
    assert_eq!(check_objects(&home.store), 1);

    home.store.remove(&id.to_string()).unwrap();
    write_machine(&path, 1, 300_000);
    cut_off();
    assert!(take(&home.store, &path).unwrap().finish().unwrap());
    assert!(!path.exists());
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
}

/// What a kill leaves between the mark and the object: nobody's name for the file, which is closed.
#[test]
fn a_file_that_was_closed_and_not_moved_has_its_mode_again() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let close = || {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        fs::hard_link(&path, home.store.root().join(format!("tmp/.smolvm-move-{id}-640"))).unwrap();
    };
    fs::create_dir_all(home.store.root().join("tmp")).unwrap();
    close();
    assert_eq!(home.store.gc_temps().unwrap().len(), 1);
    assert_eq!((mode(&path), fs::metadata(&path).unwrap().nlink()), (0o640, 1));
    close();
    let found = home.store.check(CheckOptions::default()).unwrap();
    assert_eq!(found.iter().map(|f| &f.fault).collect::<Vec<_>>(), [&Fault::Leftover]);
    assert_eq!(mode(&path), 0o400, "a look changes nothing");
    home.store.check(CheckOptions { repair: true, progress: None }).unwrap();
    assert_eq!(mode(&path), 0o640);
    // Whoever moves at this moment holds the file.
    close();
    let held = File::open(&path).unwrap();
    held.lock_shared().unwrap();
    assert_eq!(home.store.gc_temps().unwrap().len(), 0);
    drop(held);
    // What its user set since is not undone.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    home.store.gc_temps().unwrap();
    assert_eq!(mode(&path), 0o600);
    close();
    assert!(take(&home.store, &path).unwrap().finish().unwrap());
    assert_eq!(mode(&home.store.object_path(&id)), 0o400);
    assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
    // Cut off between the removal of the old name and that of the mark: an object keeps its mode.
    let mark = home.store.root().join(format!("tmp/.smolvm-move-{id}-640"));
    fs::hard_link(home.store.object_path(&id), &mark).unwrap();
    home.store.gc_temps().unwrap();
    assert_eq!((mode(&home.store.object_path(&id)), mark.exists()), (0o400, false));
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
}

/// What a child does; without orders nothing.
#[test]
fn in_a_child() {
    let Some(orders) = orders() else { return };
    let [store, file] = &orders[..] else { panic!("{orders:?}") };
    let store = Store::open(Path::new(store)).unwrap();
    println!("\nbegun");
    for seed in 0.. {
        let path = PathBuf::from(format!("{file}-{seed}"));
        write_machine(&path, seed, 500_000);
        println!("written {seed}");
        let taken = take(&store, &path).unwrap();
        store.tag(&format!("m{seed}"), &taken.pin().id(), Origin::Imported).unwrap();
        taken.finish().unwrap();
        println!("moved {seed}");
    }
}

#[test]
fn a_kill_at_any_instant_loses_no_file() {
    let rounds = if std::env::var_os("SMOLVM_LONG").is_some() { 500 } else { 30 };
    let (mut before, mut after) = (0, 0);
    for round in 0u64..rounds {
        let home = Home::new();
        let file = home.path("m");
        let mut mover = child("in_a_child", &[home.store.root().to_str().unwrap(), file.to_str().unwrap()]);
        let mut lines = BufReader::new(mover.stdout.take().unwrap()).lines().map(Result::unwrap);
        // From the first file on, or from when one or two were moved.
        let begin = match round % 3 {
            0 => "written 0".to_owned(),
            moved => format!("moved {}", moved - 1),
        };
        let early: Vec<String> = lines.by_ref().take_while(|line| *line != begin).collect();
        // Instants over some moves, by a sequence that fills the interval evenly.
        std::thread::sleep(Duration::from_micros(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50));
        mover.kill().unwrap();
        mover.wait().unwrap();
        let said: Vec<String> = lines.collect();
        let all = early.iter().chain([&begin]).chain(&said);
        let written = all.filter(|line| line.starts_with("written ")).count() as u8;
        for seed in 0..written {
            let path = PathBuf::from(format!("{}-{seed}", file.display()));
            let here = path.exists();
            let named = home.store.resolve(&format!("m{seed}")).unwrap().map(|tag| tag.id);
            assert!(here || named.is_some(), "file {seed} of {written} is gone");
            if here {
                assert_eq!(whole(&MachineFile::open_path(&path).unwrap()), id_of(seed));
            }
            if let Some(id) = named {
                assert_eq!(whole(&home.store.pin(&id).unwrap().open().unwrap()), id_of(seed));
            }
            (before, after) = (before + u32::from(here), after + u32::from(named.is_some()));
        }
        home.store.check(CheckOptions { repair: true, progress: None }).unwrap();
        assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
        check_objects(&home.store);
        let here = (0..written).map(|seed| PathBuf::from(format!("{}-{seed}", file.display())));
        here.filter(|path| path.exists())
            .for_each(|path| assert_ne!(mode(&path), 0o400, "{}", path.display()));
    }
    println!("{rounds} kills: {before} files at their old place, {after} in the store");
    assert!(after > 0);
}

fn whole(file: &MachineFile) -> Digest {
    file.verify_all(VerifyOptions::default()).unwrap();
    file.id()
}

fn id_of(seed: u8) -> Digest {
    let dir = tempfile::tempdir().unwrap();
    write_machine(&dir.path().join("m"), seed, 500_000)
}
