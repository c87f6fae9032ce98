//! Several snapshots in one file: listed, found, and each read as if it were alone.

use std::path::Path;

use artifact::{MachineFile, MachineFileWriter, SectionHead, SectionKind, VerifyOptions};
use snapshot::{Error, SnapshotInfo, find, points, select};

/// A file with a base and, for each of `infos`, a CPU state that holds the snapshot's number.
fn file(path: &Path, infos: &[(u32, Option<SnapshotInfo>)], roots: u32) -> MachineFile {
    let mut writer = MachineFileWriter::create(path).unwrap();
    let head = |kind, instance| SectionHead::new(kind, 1).instance(instance);
    for root in 0..roots {
        writer.add_bytes(head(SectionKind::RootImage, root), format!("root {root}").as_bytes()).unwrap();
    }
    for (instance, info) in infos {
        writer.add_bytes(head(SectionKind::CpuState, *instance), format!("{instance}").as_bytes()).unwrap();
        if let Some(info) = info {
            info.write(&mut writer, *instance).unwrap();
        }
    }
    writer.finish().unwrap();
    let file = MachineFile::open_path(path).unwrap();
    file.verify_all(VerifyOptions::default()).unwrap();
    file
}

fn info(name: &str, root: u32, after_step: Option<u32>) -> Option<SnapshotInfo> {
    Some(SnapshotInfo { root, ..SnapshotInfo::new(name, after_step) })
}

#[test]
fn each_is_seen_alone_with_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.smolmachine");
    let infos = [(0, info("ready", 0, None)), (1, info("one", 2, Some(1))), (2, info("two", 1, Some(2)))];
    let whole = file(&path, &infos, 3);
    let names: Vec<String> = points(&whole).unwrap().into_iter().map(|p| p.info.name).collect();
    assert_eq!(names, ["one", "two", "ready"]);
    for (name, state, root) in [
        (None, "0", "root 0"),
        (Some("ready"), "0", "root 0"),
        (Some("one"), "1", "root 2"),
        (Some("two"), "2", "root 1"),
    ] {
        let whole = MachineFile::open_path(&path).unwrap();
        let point = find(&whole, name).unwrap();
        let alone = select(whole, &point);
        assert_eq!(alone.read_required(SectionKind::CpuState, 0, 99).unwrap(), state.as_bytes());
        assert_eq!(alone.read_required(SectionKind::RootImage, 0, 99).unwrap(), root.as_bytes());
        let _ = alone.require(SectionKind::RootImage, 0).unwrap();
        if point.instance != 0 {
            assert!(alone.section_instance(SectionKind::CpuState, 1).is_none());
        }
    }
    let error = find(&whole, Some("three")).unwrap_err().to_string();
    assert_eq!(error, "there is no snapshot `three`; the file has one, two, ready");
}

#[test]
fn a_snapshot_without_info_is_the_ready_one() {
    let dir = tempfile::tempdir().unwrap();
    let old = file(&dir.path().join("old"), &[(0, None)], 1);
    let point = find(&old, None).unwrap();
    assert_eq!((point.instance, &point.info), (0, &SnapshotInfo::new("ready", None)));
    assert_eq!(find(&old, Some("ready")).unwrap(), point);
    let base = file(&dir.path().join("base"), &[], 1);
    assert_eq!(points(&base).unwrap(), []);
    assert!(find(&base, None).unwrap_err().to_string().contains("a base and has none"));
}

#[test]
fn lies_about_snapshots_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let twice = [(0, info("a", 0, None)), (1, info("a", 0, None))];
    let error = points(&file(&dir.path().join("twice"), &twice, 1)).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    let unnamed = [(0, info("\u{1b}[2J", 0, None))];
    assert!(points(&file(&dir.path().join("escape"), &unnamed, 1)).is_err());
    // A root that is not there is missed by name when it is asked for.
    let lost = file(&dir.path().join("lost"), &[(0, info("a", 7, None))], 1);
    let point = find(&lost, None).unwrap();
    let error = select(lost, &point).require(SectionKind::RootImage, 0).unwrap_err().to_string();
    assert!(error.contains("it holds no root-image"), "{error}");
    let mut writer = MachineFileWriter::create(&dir.path().join("newer")).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::CpuState, 1), b"").unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::SnapshotInfo, 9), b"").unwrap();
    writer.finish().unwrap();
    let newer = MachineFile::open_path(&dir.path().join("newer")).unwrap();
    assert!(matches!(find(&newer, None), Err(Error::Version { found: 9, .. })));
}
