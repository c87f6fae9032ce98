//! What is written is what is read, by whatever way it was written.

mod common;

use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use artifact::{
    CopyCheck, Digest, MachineFile, MachineFileWriter, PAGE_SIZE, Problem, SectionFlags, SectionHead,
    SectionKind, VerifyOptions, WriterOptions,
};
use common::{memfile, noise, write_small};

fn only(path: &Path, write: impl FnOnce(&mut MachineFileWriter)) -> MachineFile {
    let mut writer = MachineFileWriter::create(path).unwrap();
    write(&mut writer);
    writer.finish().unwrap();
    let file = MachineFile::open_path(path).unwrap();
    file.verify_all(VerifyOptions::default()).unwrap();
    file
}

fn head() -> SectionHead {
    SectionHead::new(SectionKind::MemoryPages, 1)
}

#[test]
fn sections_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_small(&dir.path().join("small.smolmachine"));
    file.verify_all(VerifyOptions::default()).unwrap();
    assert!(file.is_snapshot());
    assert_eq!(file.sections().len(), 7);
    let spec = file.read_required(SectionKind::Spec, 0, 4096).unwrap();
    assert_eq!(spec, b"name = \"small\"");
    assert_eq!(file.read_required(SectionKind::CpuState, 1, 4096).unwrap(), b"two");
    assert_eq!(file.read_required(SectionKind::RootImage, 0, 0).unwrap(), b"");
    for section in file.sections() {
        assert_eq!(section.offset % PAGE_SIZE, 0);
    }
}

#[test]
fn every_way_of_writing_makes_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let bytes = noise(3, 3 * 1024 * 1024 + 777);
    let expected = only(&path("bytes"), |w| w.add_bytes(head(), &bytes).unwrap());
    let source = memfile(&bytes);
    let half = bytes.len() as u64 / 2;
    let fill = |offset: u64, into: &mut [u8]| source.read_exact_at(into, offset);
    let rest = bytes.len() as u64 - half;
    let written = [
        only(&path("reader"), |w| assert_eq!(w.add_reader(head(), &bytes[..]).unwrap(), half + rest)),
        only(&path("pages"), |w| w.add_pages(head(), bytes.chunks(4096).map(Ok)).unwrap()),
        only(&path("filled"), |w| w.add_filled(head(), half + rest, 2, fill).unwrap()),
        only(&path("ranges"), |w| w.add_file_ranges(head(), &source, &[(0, half), (half, rest)]).unwrap()),
        only(&path("copied"), |w| {
            w.copy_section(&expected, &expected.sections()[0], CopyCheck::Rehash).unwrap()
        }),
        only(&path("trusted"), |w| {
            w.copy_section(&expected, &expected.sections()[0], CopyCheck::Trust).unwrap()
        }),
        only(&path("streamed"), |w| {
            let mut section = w.begin(head()).unwrap();
            for part in bytes.chunks(300_001) {
                section.write_all(part).unwrap();
            }
            section.end().unwrap();
        }),
    ];
    for file in written {
        assert_eq!(file.id(), expected.id(), "{}", file.path().display());
        assert_eq!(std::fs::read(file.path()).unwrap(), std::fs::read(expected.path()).unwrap());
    }
}

#[test]
fn a_file_without_sections_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = only(&dir.path().join("empty"), |_| {});
    assert_eq!(file.len(), 2 * PAGE_SIZE);
    let error = file.require(SectionKind::Kernel, 0).unwrap_err();
    assert!(matches!(error.problem(), Problem::Missing { .. }), "{error}");
}

#[test]
fn a_section_that_differs_from_its_digest_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_small(&dir.path().join("good"));
    let section = good.section(SectionKind::Kernel).unwrap().clone();
    let bad = std::fs::File::options().write(true).open(good.path()).unwrap();
    bad.write_all_at(b"?", section.offset + 100).unwrap();
    let target = dir.path().join("target");
    let mut writer = MachineFileWriter::create(&target).unwrap();
    let error = writer.copy_section(&good, &section, CopyCheck::Rehash).unwrap_err();
    assert!(error.to_string().contains("section kernel"), "{error}");
    writer.finish().unwrap_err();
    assert!(!target.exists());
}

#[test]
fn what_the_format_has_no_place_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MachineFileWriter::create(&dir.path().join("x")).unwrap();
    writer.add_bytes(head(), b"1").unwrap();
    for wrong in [head(), head().instance(1).named(""), head().instance(1).named("A b")] {
        let error = writer.add_bytes(wrong, b"2").unwrap_err();
        assert!(matches!(error.problem(), Problem::Misuse(_)), "{error}");
    }
    writer.add_bytes(head().instance(1).named("0123456789.abcdef-ghijklmnopqrs_"), b"3").unwrap();
    writer.finish().unwrap();
}

#[test]
fn unknown_kinds_are_refused_unless_they_may_be_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let unknown = SectionHead { kind_number: 900, ..head().named("novelty") };
    let ignorable = SectionHead { flags: SectionFlags::IGNORABLE, ..unknown.clone() };
    let file = only(&dir.path().join("a"), |w| w.add_bytes(ignorable, b"x").unwrap());
    assert_eq!(file.sections()[0].kind(), None);
    let path = dir.path().join("b");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    writer.add_bytes(unknown, b"x").unwrap();
    writer.finish().unwrap();
    let error = MachineFile::open_path(&path).unwrap_err().to_string();
    assert!(error.contains("novelty (kind 900)") && error.contains("update smolvm"), "{error}");
}

#[test]
fn a_file_given_up_leaves_nothing_and_the_old_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept");
    let old = write_small(&path);
    for temp in [artifact::temp::TempStyle::Auto, artifact::temp::TempStyle::Named] {
        let options = WriterOptions { temp, ..WriterOptions::default() };
        let mut writer = MachineFileWriter::create_with(&path, options).unwrap();
        writer.add_bytes(head(), &noise(1, 100_000)).unwrap();
        drop(writer);
        let failing = |at: u64, _: &mut [u8]| match at {
            0 => Ok(()),
            _ => Err(std::io::Error::other("the guest is gone")),
        };
        let mut writer = MachineFileWriter::create_with(&path, options).unwrap();
        let error = writer.add_filled(head(), 1 << 20, 2, failing).unwrap_err();
        assert!(error.to_string().contains("the guest is gone"), "{error}");
        writer.finish().unwrap_err();
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["kept"]);
        assert_eq!(MachineFile::open_path(&path).unwrap().id(), old.id());
    }
}

#[test]
fn a_new_file_replaces_the_old_one_and_is_its_owners_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept");
    for (seed, temp) in
        [(1, artifact::temp::TempStyle::Auto), (2, artifact::temp::TempStyle::Named), (3, Default::default())]
    {
        let options = WriterOptions { temp, ..WriterOptions::default() };
        let mut writer = MachineFileWriter::create_with(&path, options).unwrap();
        writer.add_bytes(head(), &noise(seed, 10)).unwrap();
        let written = writer.finish().unwrap();
        assert_eq!(MachineFile::open_path(&path).unwrap().id(), written.id);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn too_little_room_is_said_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge");
    let options = WriterOptions { expected_len: Some(1 << 60), ..WriterOptions::default() };
    let error = MachineFileWriter::create_with(&path, options).err().unwrap();
    assert!(matches!(error.problem(), Problem::NoSpace { needed, .. } if *needed == 1 << 60), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn names_that_cannot_be_written_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("none/x"), "/".into()] {
        assert!(MachineFileWriter::create(&path).is_err(), "{}", path.display());
    }
}

#[test]
fn a_section_larger_than_its_reader_takes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_small(&dir.path().join("small"));
    let error = file.read_required(SectionKind::Kernel, 0, 4999).unwrap_err();
    assert!(matches!(error.problem(), Problem::TooBig { len: 5000, cap: 4999, .. }), "{error}");
}

#[test]
fn a_check_tells_how_far_it_is_and_can_be_ended() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(5, 2_000_000);
    let file = only(&dir.path().join("x"), |w| w.add_bytes(head(), &bytes).unwrap());
    let most = AtomicU64::new(0);
    let progress = |progress: artifact::Progress| {
        most.fetch_max(progress.done, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    file.verify_all(VerifyOptions { threads: 2, progress: Some(&progress) }).unwrap();
    assert_eq!(most.load(Ordering::Relaxed), bytes.len() as u64);
    let stop = |_| ControlFlow::Break(());
    let error = file.verify_all(VerifyOptions { threads: 2, progress: Some(&stop) }).unwrap_err();
    assert!(matches!(error.problem(), Problem::Cancelled), "{error}");
}

#[test]
fn a_file_cut_short_while_it_is_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_small(&dir.path().join("small"));
    std::fs::File::options().write(true).open(file.path()).unwrap().set_len(8192).unwrap();
    let error = file.verify_all(VerifyOptions::default()).unwrap_err();
    assert!(matches!(error.problem(), Problem::Truncated { actual: 8192, .. }), "{error}");
}

/// The first landed file of format 1: every later version opens it and, as long as it writes format 1, writes it
/// so. `SMOLVM_BLESS=1` writes it anew, which is right only before a release.
#[test]
fn the_golden_file_of_format_1() {
    golden("format1.bin", &common::small_bytes());
}

/// The same for a memory map of version 2, whose pages share places and lie in the root image.
#[test]
fn the_golden_file_with_shared_pages() {
    golden("shared.bin", &common::shared_bytes());
}

fn golden(name: &str, now: &[u8]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SMOLVM_BLESS").is_some() {
        std::fs::write(&golden, now).unwrap();
    }
    let file = MachineFile::open_path(&golden).unwrap();
    file.verify_all(VerifyOptions::default()).unwrap();
    assert_eq!(Digest::of(&std::fs::read(&golden).unwrap()), Digest::of(now), "the writer has changed");
}
