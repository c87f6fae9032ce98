//! The store, as its users see it.

mod common;

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use artifact::{Digest, Problem, SectionHead, SectionKind, VerifyOptions};
use common::{Home, check_objects, files, set_times, write_machine};
use store::{Error, ImageKind, ImportOptions, Origin, PrunePolicy, Stage, Store};

#[test]
fn an_import_is_a_verified_read_only_copy_named_by_its_id() {
    let home = Home::new();
    let (path, id) = home.machine("a.smolmachine", 1);
    let pin = home.store.import(&path).unwrap();
    assert_eq!((pin.id(), pin.path()), (id, &*home.store.object_path(&id)));
    assert_eq!(fs::read(pin.path()).unwrap(), fs::read(&path).unwrap());
    assert_eq!(fs::metadata(pin.path()).unwrap().permissions().mode() & 0o7777, 0o400);
    pin.file().write_all_at(b"x", 0).unwrap_err();
    assert_eq!(pin.open().unwrap().id(), id);
    // Again: the same object.
    assert_eq!(home.store.import(&path).unwrap().id(), id);
    assert_eq!(check_objects(&home.store), 1);
    assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
}

#[test]
fn what_happens_to_the_users_file_afterwards_does_not_matter() {
    let home = Home::new();
    let (path, id) = home.machine("a.smolmachine", 1);
    let pin = home.store.import(&path).unwrap();
    let whole = |pin: &store::Pin| pin.open().unwrap().verify_all(VerifyOptions::default()).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(&[0; 10_000], 5000).unwrap();
    whole(&pin);
    File::options().write(true).open(&path).unwrap().set_len(17).unwrap();
    whole(&pin);
    fs::remove_file(&path).unwrap();
    whole(&pin);
    whole(&home.store.pin(&id).unwrap());
}

#[test]
fn a_file_with_a_wrong_byte_is_refused_even_where_the_right_one_is_known() {
    let home = Home::new();
    let (path, _) = home.machine("a", 1);
    let bad = home.path("bad");
    let mut bytes = fs::read(&path).unwrap();
    bytes[200_000] ^= 1;
    fs::write(&bad, &bytes).unwrap();
    let refused = |store: &Store| {
        let error = store.import(&bad).unwrap_err().to_string();
        assert!(error.contains("bad: damaged in section root-image"), "{error}");
        assert_eq!(files(&store.root().join("tmp")), [""; 0]);
    };
    refused(&home.store);
    assert_eq!(check_objects(&home.store), 0);
    home.store.import(&path).unwrap();
    refused(&home.store);
    assert_eq!(check_objects(&home.store), 1);
}

#[test]
fn a_foreign_file_is_named_and_leaves_nothing() {
    let home = Home::new();
    let path = home.path("Smolfile");
    fs::write(&path, "[run]\ncommand = \"x\"\n").unwrap();
    let error = home.store.fetch(&path, ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("Smolfile: this is a Smolfile"), "{error}");
    let error = home.store.fetch(&home.path("none"), ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("none: cannot open it: No such file"), "{error}");
    assert_eq!(files(&home.store.root().join("objects")), [""; 0]);
}

#[test]
fn a_path_is_recognised_until_the_file_changes() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    // It was changed just now: that could happen again within the granularity of its times.
    home.store.import(&path).unwrap();
    assert_eq!(home.store.lookup_path(&path).unwrap(), None);
    assert_eq!(files(&home.store.root().join("paths")), [""; 0]);
    wait_until_settled(&path);
    home.store.import(&path).unwrap();
    assert_eq!(home.store.lookup_path(&path).unwrap(), Some(id));
    // By any name, and fetched without being read: even unreadable rubbish in the store's copy would go unseen,
    // which is why only verified bytes get there.
    let link = home.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(home.store.lookup_path(&link).unwrap(), Some(id));
    assert_eq!(home.store.fetch(&link, ImportOptions::default()).unwrap().id(), id);
    // Another file under the name, then the old times on new content: neither is taken for it.
    let times = fs::metadata(&path).unwrap();
    File::options().write(true).open(&path).unwrap().write_all_at(b"?", 6000).unwrap();
    set_times(&path, FileTimes::new().set_modified(times.modified().unwrap()));
    assert_eq!(home.store.lookup_path(&path).unwrap(), None);
    fs::remove_file(&path).unwrap();
    write_machine(&path, 2, 1000);
    assert_eq!(home.store.lookup_path(&path).unwrap(), None);
}

/// Until the file's last change is more than 2 s ago: what a user's next minute does.
fn wait_until_settled(path: &std::path::Path) {
    let changed = fs::metadata(path).unwrap().modified().unwrap();
    let settled = changed + Duration::from_millis(2100);
    if let Ok(left) = settled.duration_since(SystemTime::now()) {
        std::thread::sleep(left);
    }
}

#[test]
fn a_damaged_record_is_none() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    wait_until_settled(&path);
    home.store.import(&path).unwrap();
    let records = home.store.root().join("paths");
    let record = records.join(&files(&records)[0]);
    let whole = fs::read(&record).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&record, &damaged).unwrap();
        assert_eq!(home.store.lookup_path(&path).unwrap(), None, "byte {at}");
    }
    fs::write(&record, &whole[..50]).unwrap();
    assert_eq!(home.store.fetch(&path, ImportOptions::default()).unwrap().id(), id);
    assert_eq!(home.store.lookup_path(&path).unwrap(), Some(id));
    // The object is gone: the record is of no use, and the file is imported again.
    home.store.remove(&id.to_string()).unwrap();
    assert!(matches!(home.store.pin(&id), Err(Error::Gone { .. })));
    assert_eq!(home.store.fetch(&path, ImportOptions::default()).unwrap().id(), id);
    home.store.remove(&id.to_string()).unwrap();
    home.store.gc_temps().unwrap();
    assert_eq!(files(&records), [""; 0]);
}

#[test]
fn an_import_can_be_watched_and_ended() {
    let home = Home::new();
    let path = home.path("big");
    let id = write_machine(&path, 1, 3_000_000);
    let stop_at = |stage: Stage| {
        let progress =
            move |now, _| if now == stage { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        home.store.import_with(&path, ImportOptions { progress: Some(&progress) })
    };
    let Err(Error::File(error)) = stop_at(Stage::Verify) else { panic!() };
    assert!(matches!(error.problem(), Problem::Cancelled), "{error}");
    // A file system that shares blocks copies nothing, so there is nothing to end.
    let copied = stop_at(Stage::Copy).map(|pin| pin.id());
    match copied {
        Err(Error::File(error)) => assert!(matches!(error.problem(), Problem::Cancelled), "{error}"),
        Err(error) => panic!("{error}"),
        Ok(copied) => assert_eq!(home.store.remove(&copied.to_string()).unwrap().id, id),
    }
    assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
    assert_eq!(check_objects(&home.store), 0);
}

#[test]
fn a_machine_can_be_written_into_the_store() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let source = artifact::MachineFile::open_path(&path).unwrap();
    let write = || {
        let mut object = home.store.begin_object(Some(source.len())).unwrap();
        for section in source.sections() {
            object.writer.copy_section(&source, section, artifact::CopyCheck::Rehash).unwrap();
        }
        object.finish().unwrap()
    };
    let first = write();
    assert_eq!((first.id(), write().id()), (id, id));
    drop(home.store.begin_object(None).unwrap());
    assert_eq!(check_objects(&home.store), 1);
    assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
    assert_eq!(fs::metadata(first.path()).unwrap().permissions().mode() & 0o7777, 0o400);
    let error = home.store.begin_object(Some(1 << 60)).err().unwrap().to_string();
    assert!(error.contains("not enough room"), "{error}");
}

#[test]
fn names_stand_for_objects() {
    let home = Home::new();
    let (a, id_a) = home.machine("a", 1);
    let (b, id_b) = home.machine("b", 2);
    home.store.import(&a).unwrap();
    home.store.import(&b).unwrap();
    let oci = "registry.example/library/python:3.12@x";
    home.store.tag("search", &id_a, Origin::Built).unwrap();
    home.store.tag(oci, &id_b, Origin::Oci).unwrap();
    assert_eq!(home.store.resolve("search").unwrap().unwrap().id, id_a);
    assert_eq!(home.store.resolve(oci).unwrap().unwrap().origin, Origin::Oci);
    assert_eq!(home.store.resolve("none").unwrap(), None);
    home.store.tag("search", &id_b, Origin::Imported).unwrap();
    assert_eq!(home.store.find("search").unwrap(), id_b);
    let names: Vec<String> = home.store.tags().unwrap().into_iter().map(|tag| tag.name).collect();
    assert_eq!(names, [oci, "search"]);
    assert!(home.store.untag("search").unwrap() && !home.store.untag("search").unwrap());
    for bad in ["", "../x", ".x", "-x", "a b", "ä", &"x".repeat(81), "a\nb"] {
        let error = home.store.tag(bad, &id_a, Origin::Built).unwrap_err();
        assert!(matches!(error, Error::BadName { .. }), "{bad:?}: {error}");
    }
    let absent = Digest::of(b"absent");
    assert!(matches!(home.store.tag("x", &absent, Origin::Built), Err(Error::Gone { .. })));
}

#[test]
fn an_object_is_found_by_the_beginning_of_its_id() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    home.store.import(&path).unwrap();
    let hex = id.to_string();
    for digits in [4, 12, 64] {
        assert_eq!(home.store.find(&hex[..digits]).unwrap(), id);
    }
    for wrong in [&hex[..3], "zzzz", "", "/etc/passwd"] {
        assert!(matches!(home.store.find(wrong), Err(Error::NoSuchName { .. })), "{wrong}");
    }
}

#[test]
fn the_list_says_what_each_is() {
    let home = Home::new();
    let (path, base) = home.machine("base", 1);
    home.store.import(&path).unwrap();
    home.store.tag("b", &base, Origin::Built).unwrap();
    home.store.tag("a", &base, Origin::Imported).unwrap();
    let mut object = home.store.begin_object(None).unwrap();
    object.writer.add_bytes(SectionHead::new(SectionKind::CpuState, 1), b"state").unwrap();
    let snapshot = object.finish().unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    set_times(&home.store.object_path(&base), FileTimes::new().set_accessed(long_ago));
    let images = home.store.images().unwrap();
    let seen: Vec<_> = images.iter().map(|image| (image.id, image.kind, image.in_use)).collect();
    assert_eq!(seen, [(snapshot.id(), ImageKind::Snapshot, true), (base, ImageKind::Base, false)]);
    assert_eq!(images[1].names, ["a", "b"]);
    assert_eq!(images[1].last_used, long_ago);
    assert_eq!(images[1].len, fs::metadata(&path).unwrap().len());
    // To hold it is to use it.
    home.store.pin(&base).unwrap();
    assert!(home.store.images().unwrap().iter().all(|image| image.last_used > long_ago));
    home.store.tag("b", &base, Origin::Oci).unwrap();
    assert!(home.store.images().unwrap().iter().any(|image| image.kind == ImageKind::Oci));
}

#[test]
fn prune_spares_what_is_named_or_used() {
    let home = Home::new();
    let ids: Vec<Digest> = (1..=5)
        .map(|seed| {
            let (path, id) = home.machine(&format!("m{seed}"), seed);
            home.store.import(&path).unwrap();
            id
        })
        .collect();
    home.store.tag("named", &ids[0], Origin::Built).unwrap();
    let held = home.store.pin(&ids[1]).unwrap();
    let owner = home.path("instances/one");
    fs::create_dir_all(&owner).unwrap();
    home.store.add_reference(&home.store.pin(&ids[2]).unwrap(), &owner).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(1000);
    set_times(&home.store.object_path(&ids[3]), FileTimes::new().set_accessed(long_ago));

    let prune = |policy| {
        let mut gone: Vec<Digest> =
            home.store.prune(policy).unwrap().objects.into_iter().map(|(id, _)| id).collect();
        gone.sort_unstable();
        gone
    };
    let sorted = |mut ids: Vec<Digest>| {
        ids.sort_unstable();
        ids
    };
    let default = PrunePolicy::default();
    let old = PrunePolicy { unused_for: Some(Duration::from_secs(500)), ..default };
    assert_eq!(prune(PrunePolicy { dry_run: true, ..default }), sorted(vec![ids[3], ids[4]]));
    assert_eq!(prune(old), [ids[3]]);
    assert_eq!(prune(default), [ids[4]]);
    assert_eq!(prune(default), []);
    assert_eq!(check_objects(&home.store), 3);
    // The uses end: an instance that is removed, a machine that stops, a name that is no matter.
    fs::remove_dir(&owner).unwrap();
    drop(held);
    assert_eq!(prune(default), sorted(vec![ids[1], ids[2]]));
    assert_eq!(prune(PrunePolicy { named: true, ..default }), [ids[0]]);
    assert_eq!(home.store.tags().unwrap(), []);
    assert_eq!(files(&home.store.root().join("refs")), [""; 0]);
}

#[test]
fn remove_takes_names_first_and_nothing_that_is_in_use() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let pin = home.store.import(&path).unwrap();
    home.store.tag("one", &id, Origin::Built).unwrap();
    home.store.tag("two", &id, Origin::Built).unwrap();
    let removed = home.store.remove("one").unwrap();
    assert_eq!((removed.names, removed.object), (vec!["one".to_owned()], false));
    let error = home.store.remove(&id.to_string()).unwrap_err().to_string();
    assert!(error.contains("in use by a running machine"), "{error}");
    drop(pin);
    let owner = home.path("instance");
    fs::create_dir(&owner).unwrap();
    home.store.add_reference(&home.store.pin(&id).unwrap(), &owner).unwrap();
    let error = home.store.remove(&id.to_string()).unwrap_err().to_string();
    assert!(error.contains(&*owner.to_string_lossy()), "{error}");
    fs::remove_dir(&owner).unwrap();
    let removed = home.store.remove("two").unwrap();
    assert_eq!((removed.id, removed.object), (id, true));
    assert!(matches!(home.store.remove("two"), Err(Error::NoSuchName { .. })));
    assert_eq!(check_objects(&home.store), 0);
}

#[test]
fn a_reference_outlives_a_disk_that_is_out_of_sight() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let owner = home.path("disk/instance");
    fs::create_dir_all(&owner).unwrap();
    home.store.add_reference(&home.store.import(&path).unwrap(), &owner).unwrap();
    fs::remove_dir_all(owner.parent().unwrap()).unwrap();
    assert_eq!(home.store.references(&id).unwrap(), [owner]);
    assert!(home.store.prune(PrunePolicy::default()).unwrap().objects.is_empty());
}

#[test]
fn a_store_that_others_can_write_to_is_refused() {
    let home = Home::new();
    assert_eq!(fs::metadata(home.store.root()).unwrap().permissions().mode() & 0o7777, 0o700);
    let shared = home.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Store::open(&shared).unwrap_err().to_string();
    assert!(error.contains("others can write") && error.contains("SMOLVM_HOME"), "{error}");
    // Our own link to a place of our own is fine: a larger disk.
    let link = home.path("link");
    std::os::unix::fs::symlink(home.store.root(), &link).unwrap();
    let (path, id) = home.machine("a", 1);
    assert_eq!(Store::open(&link).unwrap().import(&path).unwrap().id(), id);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&shared, &link).unwrap();
    assert!(matches!(Store::open(&link), Err(Error::NotPrivate { .. })));
}

#[test]
fn another_users_store_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can make a directory for somebody else");
        return;
    }
    let home = Home::new();
    let theirs = home.path("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
    let error = Store::open(&theirs).unwrap_err().to_string();
    assert!(error.contains("belongs to user 12345"), "{error}");
    // Nor is somebody else's link followed, wherever it leads.
    let link = home.path("link");
    std::os::unix::fs::symlink(home.store.root(), &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
    assert!(matches!(Store::open(&link), Err(Error::NotPrivate { .. })));
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let home = Home::new();
    let mount = home.path("disk");
    fs::create_dir(&mount).unwrap();
    if !mount_tmpfs(&mount) {
        eprintln!("SKIPPED: no small file system can be mounted here");
        return;
    }
    let (path, _) = home.machine("a", 1);
    let big = home.path("big");
    write_machine(&big, 2, 3_000_000);
    let store = Store::open(&mount.join("store")).unwrap();
    let error = store.import(&big).unwrap_err().to_string();
    assert!(error.contains("not enough room") && error.contains("big"), "{error}");
    let kept = store.import(&path).unwrap();
    // Room at the start, none at the end: somebody else fills the disk meanwhile.
    let mut object = store.begin_object(Some(300_000)).unwrap();
    let mut section = object.writer.begin(SectionHead::new(SectionKind::RootImage, 1)).unwrap();
    let error = std::iter::repeat_with(|| section.write_all(&[1; 100_000])).find_map(Result::err).unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    drop(section);
    drop(object);
    assert_eq!(files(&store.root().join("tmp")), [""; 0]);
    assert_eq!(check_objects(&store), 1);
    drop(kept);
    assert!(std::process::Command::new("umount").arg(&mount).status().unwrap().success());
}

/// A file system of 2 MiB, where this user may mount one.
fn mount_tmpfs(at: &std::path::Path) -> bool {
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=2m,mode=700", "smolvm-test"]).arg(at);
    mount.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
}

#[test]
fn what_a_build_discards_goes_unless_it_is_named_or_used() {
    let home = Home::new();
    let import = |seed| {
        let (path, id) = home.machine(&format!("m{seed}"), seed);
        home.store.import(&path).unwrap();
        id
    };
    let (named, used, layer) = (import(1), import(2), {
        let mut object = home.store.begin_object(None).unwrap();
        object.writer.add_bytes(SectionHead::new(SectionKind::DiskDeltaPages, 1), &[7; 4096]).unwrap();
        object.finish().unwrap().id()
    });
    home.store.tag("named", &named, Origin::Built).unwrap();
    let held = home.store.pin(&used).unwrap();
    let images = home.store.images().unwrap();
    let kind = |id| images.iter().find(|image| image.id == id).unwrap().kind;
    assert_eq!((kind(named), kind(layer)), (ImageKind::Base, ImageKind::Layer));
    assert!(home.store.remove_unnamed(&layer).unwrap());
    assert!(!home.store.remove_unnamed(&named).unwrap());
    assert!(matches!(home.store.remove_unnamed(&used), Err(Error::InUse { .. })));
    drop(held);
    assert!(home.store.remove_unnamed(&used).unwrap());
    assert_eq!(home.store.ids().unwrap(), [named]);
}

#[test]
fn what_is_kept_for_a_time_goes_when_the_store_grows_too_large() {
    let home = Home::new();
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    let ids: Vec<Digest> = (1..=4)
        .map(|seed| {
            let (path, id) = home.machine(&format!("m{seed}"), seed);
            home.store.import(&path).unwrap();
            set_times(
                &home.store.object_path(&id),
                FileTimes::new().set_accessed(ago(1000 * u64::from(seed))),
            );
            id
        })
        .collect();
    let len = home.store.images().unwrap()[0].len;
    home.store.tag("named", &ids[3], Origin::Built).unwrap();
    set_times(&home.store.object_path(&ids[3]), FileTimes::new().set_accessed(ago(9000)));
    let day = Some(Duration::from_secs(86_400));
    let prune = |policy| {
        let done = home.store.prune(policy).unwrap();
        (done.objects.iter().map(|(id, _)| *id).collect::<Vec<_>>(), done.left)
    };
    let keep = PrunePolicy { unused_for: day, ..PrunePolicy::default() };
    assert_eq!(prune(keep), (vec![], 4 * len));
    // The longest unused first, and no more than has to.
    let two = PrunePolicy { max_size: Some(2 * len), ..keep };
    assert_eq!(prune(PrunePolicy { dry_run: true, ..two }), (vec![ids[2], ids[1]], 2 * len));
    assert_eq!(prune(two), (vec![ids[2], ids[1]], 2 * len));
    assert_eq!(prune(two), (vec![], 2 * len));
    // What is in use or has a name stays, however much that is.
    let held = home.store.pin(&ids[0]).unwrap();
    let none = PrunePolicy { max_size: Some(0), ..keep };
    assert_eq!(prune(none), (vec![], 2 * len));
    drop(held);
    assert_eq!(prune(none), (vec![ids[0]], len));
    assert_eq!(prune(PrunePolicy { named: true, ..none }), (vec![ids[3]], 0));
}

#[test]
fn what_another_builds_on_outlives_that_one_by_a_prune() {
    let home = Home::new();
    let (path, base) = home.machine("base", 1);
    home.store.import(&path).unwrap();
    let mut writer = artifact::MachineFileWriter::create(&home.path("changes")).unwrap();
    writer.set_parent(base);
    writer.add_bytes(SectionHead::new(SectionKind::CpuState, 1), b"state").unwrap();
    writer.finish().unwrap();
    let child = home.store.import(&home.path("changes")).unwrap().id();
    let images = home.store.images().unwrap();
    let of = |id| images.iter().find(|image| image.id == id).unwrap();
    assert_eq!((of(child).parent, of(base).parent), (Some(base), None));
    assert_eq!(of(base).root.map(|(_, len)| len), Some(300_000));
    home.store.tag("child", &child, Origin::Built).unwrap();
    assert!(home.store.prune(PrunePolicy::default()).unwrap().objects.is_empty());
    home.store.untag("child").unwrap();
    let prune = |policy| -> Vec<Digest> {
        home.store.prune(policy).unwrap().objects.into_iter().map(|(id, _)| id).collect()
    };
    assert_eq!(prune(PrunePolicy { dry_run: true, ..PrunePolicy::default() }), [child]);
    assert_eq!(prune(PrunePolicy::default()), [child]);
    // Its file is still the user's, and runs.
    home.store.import(&home.path("changes")).unwrap();
    assert_eq!(prune(PrunePolicy::default()), [child]);
    assert_eq!(prune(PrunePolicy::default()), [base]);
    // Where room is short both go at once.
    home.store.import(&path).unwrap();
    home.store.import(&home.path("changes")).unwrap();
    let mut gone = prune(PrunePolicy { max_size: Some(0), dry_run: true, ..PrunePolicy::default() });
    gone.sort_unstable();
    let mut both = [child, base];
    both.sort_unstable();
    assert_eq!(gone, both);
}

#[test]
fn a_passing_need_becomes_a_lasting_one() {
    let home = Home::new();
    let (path, id) = home.machine("a", 1);
    let pin = home.store.import(&path).unwrap();
    let owner = home.path("instance");
    fs::create_dir(&owner).unwrap();
    home.store.add_passing_reference(&pin, &owner).unwrap();
    home.store.add_reference(&pin, &owner).unwrap();
    assert!(home.store.is_referred(&id, &owner));
    home.store.drop_reference(&id, &owner).unwrap();
    home.store.drop_reference(&id, &owner).unwrap();
    assert!(!home.store.is_referred(&id, &owner));
}
