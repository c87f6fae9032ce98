//! Volumes as the program uses them.

use std::os::unix::fs::FileExt;

use disk::Disk;
use store::Dirs;
use volume::{Access, Error, MIN_SIZE, Volumes};

fn home() -> (tempfile::TempDir, Volumes) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_owned();
    let dirs = Dirs::resolve(|name| (name == "SMOLVM_HOME").then(|| home.clone().into()), 0).unwrap();
    let volumes = Volumes::of(&dirs);
    (dir, volumes)
}

#[test]
fn a_new_volume_is_a_file_system_that_costs_little() {
    let (_home, volumes) = home();
    let volume = volumes.create("data", 1 << 40).unwrap();
    let (size, used) = volume.sizes().unwrap();
    assert_eq!(size, 1 << 40);
    assert!(used < 2 << 20, "{used} bytes");
    let mut magic = [0; 2];
    std::fs::File::open(volume.disk_path()).unwrap().read_exact_at(&mut magic, 1024 + 0x38).unwrap();
    assert_eq!(magic, [0x53, 0xef]);
    assert!(matches!(volumes.create("data", MIN_SIZE), Err(Error::Taken(_))));
    assert_eq!(volumes.list().unwrap().iter().map(|v| v.name()).collect::<Vec<_>>(), ["data"]);
    volume.remove().unwrap();
    assert!(matches!(volumes.get("data"), Err(Error::None { .. })));
}

#[test]
fn names_and_sizes_that_cannot_be_are_refused() {
    let (_home, volumes) = home();
    for name in ["", "a.b", "../x", "A", "-x", "a/b"] {
        assert!(matches!(volumes.create(name, MIN_SIZE), Err(Error::BadName(_))), "{name}");
        assert!(volumes.get(name).is_err(), "{name}");
    }
    for size in [0, MIN_SIZE - (1 << 20), MIN_SIZE + 1, u64::MAX, (4 << 40) + (1 << 20)] {
        assert!(matches!(volumes.create("x", size), Err(Error::Size { .. })), "{size}");
    }
    let volume = volumes.create("records", MIN_SIZE * 2).unwrap();
    assert!(matches!(volume.grow(MIN_SIZE), Err(Error::Shrink { .. })));
    volume.grow(MIN_SIZE * 3).unwrap();
    assert_eq!(volume.sizes().unwrap().0, MIN_SIZE * 3);
    let Err(error) = volumes.get("record") else { panic!("there is none") };
    assert!(error.to_string().contains("did you mean `records`"), "{error}");
}

#[test]
fn one_writes_or_several_read() {
    let (_home, volumes) = home();
    let volume = volumes.create("data", MIN_SIZE).unwrap();
    let writer = volume.attach("web", Access::Write, None).unwrap();
    for access in [Access::Write, Access::Read] {
        let Err(error) = volume.attach("other", access, None) else { panic!("two at once") };
        assert!(error.to_string().contains("by `web`"), "{error}");
    }
    assert!(volume.is_in_use() && volume.grow(MIN_SIZE * 2).is_err());
    assert!(matches!(volumes.snapshot(&volume, "copy"), Err(Error::InUse { .. })));
    assert!(matches!(volume.clone().remove(), Err(Error::InUse { .. })));
    drop(writer);
    let readers = ["a", "b"].map(|name| volume.attach(name, Access::Read, None).unwrap());
    assert!(readers.iter().all(|reader| reader.disk.is_read_only()));
    assert!(matches!(volume.attach("web", Access::Write, None), Err(Error::InUse { .. })));
    drop(readers);
    assert!(!volume.is_in_use());
}

#[test]
fn a_frozen_machine_finds_the_volume_it_knew_or_hears_that_it_changed() {
    let (_home, volumes) = home();
    let volume = volumes.create("data", MIN_SIZE).unwrap();
    let known = volume.attach("web", Access::Write, None).unwrap().generation;
    let again = volume.attach("web", Access::Write, Some(known)).unwrap().generation;
    volume.attach("reader", Access::Read, None).unwrap();
    let third = volume.attach("web", Access::Write, Some(again)).unwrap().generation;
    volume.attach("other", Access::Write, None).unwrap();
    assert!(matches!(volume.attach("web", Access::Write, Some(third)), Err(Error::Changed { .. })));
}

#[test]
fn what_was_not_shut_down_is_not_read_before_it_is_whole() {
    let (_home, volumes) = home();
    let volume = volumes.create("data", MIN_SIZE).unwrap();
    let writer = volume.attach("web", Access::Write, None).unwrap();
    let mut word = [0; 4];
    writer.disk.read_at(1024 + 0x60, &mut word).unwrap();
    word[0] |= 4;
    writer.disk.write_at(1024 + 0x60, &word).unwrap();
    writer.disk.flush().unwrap();
    drop(writer);
    assert!(matches!(volume.attach("r", Access::Read, None), Err(Error::NeedsRecovery { .. })));
    volume.attach("w", Access::Write, None).unwrap();
}

#[test]
fn a_copy_has_the_same_bytes_and_goes_its_own_way() {
    let (_home, volumes) = home();
    let volume = volumes.create("data", 8 << 30).unwrap();
    let writer = volume.attach("web", Access::Write, None).unwrap();
    writer.disk.write_at(5 << 30, &[7; 10_000]).unwrap();
    writer.disk.write_at(6 << 30, &[9; 4096]).unwrap();
    writer.disk.discard(6 << 30, 4096).unwrap();
    drop(writer);
    let copy = volumes.snapshot(&volume, "copy").unwrap();
    assert_eq!(copy.info().unwrap().copy_of.as_deref(), Some("data"));
    assert!(copy.sizes().unwrap().1 < 4 << 20);
    let attached = copy.attach("b", Access::Write, None).unwrap();
    let mut bytes = vec![0; 10_001];
    attached.disk.read_at(5 << 30, &mut bytes).unwrap();
    assert!(bytes[..10_000].iter().all(|b| *b == 7) && bytes[10_000] == 0);
    attached.disk.write_at(5 << 30, &[8]).unwrap();
    let original = volume.attach("a", Access::Read, None).unwrap();
    original.disk.read_at(5 << 30, &mut bytes).unwrap();
    assert_eq!(bytes[0], 7);
}

/// A volume's bytes as a running machine left them at an instant, made the volumes of its copies.
#[test]
fn copies_of_a_machine_get_their_volumes_from_one_file() {
    let (home, volumes) = home();
    let volume = volumes.create("data", 1 << 30).unwrap();
    let writer = std::sync::Arc::new(volume.attach("web", Access::Write, None).unwrap());
    writer.disk.write_at(500 << 20, &[7; 5000]).unwrap();
    let path = home.path().join("file");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let copy = writer.disk.copy(file).unwrap();
    writer.disk.write_at(500 << 20, &[8; 5000]).unwrap();
    copy.finish().unwrap();
    for (name, last) in [("data-a", false), ("data-b", true)] {
        let machine = &name[5..];
        let own = volumes.adopt(name, "data", machine, &path, last).unwrap();
        let info = own.info().unwrap();
        assert_eq!((info.made_for.as_deref(), info.copy_of.as_deref()), (Some(machine), Some("data")));
        assert!(own.sizes().unwrap().1 < 4 << 20);
        let mut bytes = [0; 5001];
        own.attach(machine, Access::Write, Some(0)).unwrap().disk.read_at(500 << 20, &mut bytes).unwrap();
        assert!(bytes[..5000].iter().all(|byte| *byte == 7) && bytes[5000] == 0);
        assert!(matches!(own.attach(machine, Access::Write, Some(0)), Err(Error::Changed { .. })));
    }
    assert!(matches!(volumes.adopt("data-a", "data", "a", &path, true), Err(Error::Taken(_))));
    volumes.has_room(1).unwrap();
}

#[test]
fn what_makers_that_are_gone_left_is_found_and_nothing_else() {
    let (home, volumes) = home();
    assert!(volumes.leftovers(true).unwrap().is_empty());
    volumes.create("data", MIN_SIZE).unwrap();
    let left = home.path().join("volumes/.other.77");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("disk"), b"half").unwrap();
    assert_eq!(volumes.leftovers(false).unwrap(), std::slice::from_ref(&left));
    // Its maker lives.
    let maker = std::fs::File::open(&left).unwrap();
    maker.lock().unwrap();
    assert!(volumes.leftovers(true).unwrap().is_empty() && left.exists());
    drop(maker);
    assert_eq!(volumes.leftovers(true).unwrap(), std::slice::from_ref(&left));
    assert!(!left.exists());
    assert_eq!(volumes.list().unwrap().iter().map(|v| v.name()).collect::<Vec<_>>(), ["data"]);
}
