//! What goes wrong with a store is found, told, and mended; what holds data is set aside.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use artifact::temp::PREFIX;
use artifact::{Digest, SectionHead, SectionKind};
use common::{Home, check_objects, files};
use store::{CheckOptions, Error, Fault, Finding, ImageKind, Origin, PrunePolicy};

const REPAIR: CheckOptions<'_> = CheckOptions { repair: true, progress: None };

fn import(home: &Home, seed: u8) -> Digest {
    let (path, id) = home.machine(&format!("m{seed}"), seed);
    home.store.import(&path).unwrap();
    id
}

/// Changes on `parent`, which is in the store.
fn changes(home: &Home, parent: Digest) -> Digest {
    let mut writer = artifact::MachineFileWriter::create(&home.path("changes")).unwrap();
    writer.set_parent(parent);
    writer.add_bytes(SectionHead::new(SectionKind::CpuState, 1), b"state").unwrap();
    writer.finish().unwrap();
    home.store.import(&home.path("changes")).unwrap().id()
}

fn open_up(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Found, told without a change, mended; then nothing is left to say. What was found.
fn found_and_mended(home: &Home) -> Vec<Finding> {
    let told = home.store.check(CheckOptions::default()).unwrap();
    assert!(told.iter().all(|finding| !finding.mended && finding.aside.is_none()), "{told:?}");
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), told, "looking changed something");
    let mended = home.store.check(REPAIR).unwrap();
    assert_eq!(mended.len(), told.len());
    assert!(mended.iter().all(|finding| finding.mended && finding.remedy().is_some()), "{mended:?}");
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
    mended
}

#[test]
fn a_whole_store_has_no_faults() {
    let home = Home::new();
    assert_eq!(home.store.check(REPAIR).unwrap(), []);
    let id = import(&home, 1);
    home.store.tag("name", &id, Origin::Built).unwrap();
    let child = changes(&home, id);
    home.store.add_reference(&home.store.pin(&child).unwrap(), &home.path("")).unwrap();
    assert_eq!(home.store.check(REPAIR).unwrap(), []);
    assert_eq!(check_objects(&home.store), 2);
}

#[test]
fn a_damaged_object_is_set_aside_and_comes_back_with_its_file() {
    let home = Home::new();
    let (bad, good) = (import(&home, 1), import(&home, 2));
    home.store.tag("search", &bad, Origin::Imported).unwrap();
    let path = home.store.object_path(&bad);
    open_up(&path);
    File::options().write(true).open(&path).unwrap().write_all_at(b"rot", 200_000).unwrap();
    let mended = found_and_mended(&home);
    let Fault::Damaged(why) = &mended[0].fault else { panic!("{mended:?}") };
    assert!(why.contains("damaged in section root-image") && mended[0].what == "search", "{mended:?}");
    assert_eq!(mended[1].fault, Fault::NameOfNothing(bad));
    // Nothing of it is deleted, and nothing takes it for good.
    let aside = mended[0].aside.as_ref().unwrap();
    assert_eq!(fs::read(aside).unwrap()[200_000..200_003], *b"rot");
    assert!(matches!(home.store.pin(&bad), Err(Error::Gone { .. })));
    assert_eq!(home.store.ids().unwrap(), [good]);
    home.store.import(&home.path("m1")).unwrap();
    assert_eq!(check_objects(&home.store), 2);
    // A second one of that name is set aside beside the first.
    open_up(&path);
    fs::write(&path, b"nothing").unwrap();
    assert_ne!(home.store.check(REPAIR).unwrap()[0].aside.as_ref(), Some(aside));
    assert_eq!(files(&home.store.root().join("damaged")).len(), 2);
}

#[test]
fn an_object_under_anothers_name_is_damaged() {
    let home = Home::new();
    let (a, b) = (import(&home, 1), import(&home, 2));
    fs::rename(home.store.object_path(&a), home.store.object_path(&b)).unwrap();
    assert_eq!(home.store.images().unwrap()[0].kind, ImageKind::Damaged);
    let mended = found_and_mended(&home);
    assert!(matches!(&mended[..], [Finding { fault: Fault::Damaged(_), .. }]), "{mended:?}");
}

#[test]
fn leftovers_foreign_things_and_small_files() {
    let home = Home::new();
    let id = import(&home, 1);
    let put = |name: &str, bytes: &[u8]| {
        let path = home.store.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    put(&format!("tmp/{PREFIX}1-2"), b"half");
    put("objects/README", b"by hand");
    put("tags/torn", b"");
    put("tags/of-nothing", format!("{} built\n", Digest::of(b"x")).as_bytes());
    put("paths/1-2", b"SMOLPTH1");
    put("refs/notes", b"by hand");
    fs::set_permissions(home.store.object_path(&id), fs::Permissions::from_mode(0o644)).unwrap();
    let mut faults: Vec<String> = found_and_mended(&home)
        .iter()
        .map(|finding| format!("{:?}", finding.fault).split('(').next().unwrap().to_owned())
        .collect();
    faults.sort();
    let expected =
        ["DamagedName", "DamagedRecord", "Foreign", "Foreign", "Leftover", "NameOfNothing", "Writable"];
    assert_eq!(faults, expected);
    assert_eq!(files(&home.store.root().join("damaged")), ["README", "notes", "torn"]);
    assert_eq!(check_objects(&home.store), 1);
}

#[test]
fn what_a_living_process_writes_is_no_leftover() {
    let home = Home::new();
    let store = home.store.clone().with_temp_style(artifact::temp::TempStyle::Named);
    let writer = store.begin_object(None).unwrap();
    assert_eq!(store.check(REPAIR).unwrap(), []);
    drop(writer);
}

#[test]
fn needs_between_objects() {
    let home = Home::new();
    let parent = import(&home, 1);
    let child = changes(&home, parent);
    home.store.tag("child", &child, Origin::Built).unwrap();
    // As after a power failure.
    fs::remove_dir_all(home.store.root().join("refs")).unwrap();
    let mended = found_and_mended(&home);
    assert_eq!(mended[0].fault, Fault::NoReference(parent));
    assert!(home.store.prune(PrunePolicy::default()).unwrap().objects.is_empty());
    // `prune` alone sees to it as well.
    fs::remove_dir_all(home.store.root().join("refs")).unwrap();
    assert!(home.store.prune(PrunePolicy::default()).unwrap().objects.is_empty());
    // A person took the parent away: only its file helps.
    fs::remove_file(home.store.object_path(&parent)).unwrap();
    let told = home.store.check(REPAIR).unwrap();
    assert_eq!((&told[0].fault, told[0].mended, told[0].remedy()), (&Fault::NoParent(parent), false, None));
    assert!(told[0].to_string().contains(&parent.to_string()), "{}", told[0]);
    home.store.import(&home.path("m1")).unwrap();
    home.store.check(REPAIR).unwrap();
    assert_eq!(home.store.check(CheckOptions::default()).unwrap(), []);
}
