//! Archives of every make come in as they are; broken and hostile ones are refused.

use std::io::{Read, Write};
use std::process::Command;

use image::archive::{Entry, EntryKind, TarReader};
use image::tree::{Device, Limits, Time};
use image::{ArchiveError, Spool, Tree, add_tar};
use proptest::prelude::*;

fn spool() -> Spool {
    Spool::new(&std::env::temp_dir(), 1 << 30).expect("spool")
}

fn unpacked(archive: &[u8]) -> Result<Tree, ArchiveError> {
    let mut tree = Tree::new(Limits::default());
    add_tar(&mut tree, &spool(), archive)?;
    Ok(tree)
}

fn entries(archive: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut tar = TarReader::new(archive);
    let mut all = Vec::new();
    while let Some(entry) = tar.next_entry().expect("entry") {
        let mut data = Vec::new();
        tar.read_to_end(&mut data).expect("data");
        all.push((entry, data));
    }
    all
}

/// An archive with one member made by `set`.
fn one(path: &str, data: &[u8], set: impl Fn(&mut tar::Header)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    set(&mut header);
    // Written by hand, since the builder refuses the paths that are to be refused here.
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    builder.append(&header, data).expect("appended");
    builder.into_inner().expect("archive")
}

#[test]
fn fields_of_every_kind_are_read() {
    let archive = one("dev/x", b"", |header| {
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(7).unwrap();
        header.set_device_minor(70_000).unwrap();
        header.set_uid(3_000_000_000);
        header.set_mtime(1 << 40);
        header.set_mode(0o4711);
    });
    let (entry, _) = &entries(&archive)[0];
    assert_eq!(entry.kind, EntryKind::CharDevice(Device { major: 7, minor: 70_000 }));
    assert_eq!((entry.meta.uid, entry.meta.mode), (3_000_000_000, 0o4711));
    assert_eq!(entry.meta.mtime, Time::from_secs(1 << 40));
}

#[test]
fn pax_records_name_attributes_times_and_long_paths() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut builder = tar::Builder::new(Vec::new());
    let records = [
        ("path", long.as_bytes()),
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.bytes", b"a\n=\0b"),
        ("uid", b"4000000000"),
    ];
    builder.append_pax_extensions(records).expect("pax");
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_cksum();
    builder.append(&header, &b"abc"[..]).expect("appended");
    let archive = builder.into_inner().expect("archive");
    let (entry, data) = &entries(&archive)[0];
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!(entry.meta.mtime, Time { secs: -2, nanos: 750_000_000 });
    assert_eq!(entry.meta.xattrs.get(&b"user.bytes"[..]).map(|v| &v[..]), Some(&b"a\n=\0b"[..]));
    assert_eq!(entry.meta.uid, 4_000_000_000);
    assert_eq!(data, b"abc");
}

#[test]
fn every_compression_is_recognised() {
    let plain = one("file", &[7; 100_000], |_| ());
    let want = unpacked(&plain).expect("plain").digest().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    for archive in [gzip.finish().unwrap(), xz.finish().unwrap(), zstd] {
        assert!(archive.len() < 10_000);
        assert_eq!(unpacked(&archive).expect("unpacked").digest().unwrap(), want);
    }
}

#[test]
fn what_is_no_tar_is_named() {
    let said = |bytes: &[u8]| unpacked(bytes).expect_err("refused").to_string();
    assert!(said(b"PK\x03\x04....").contains("zip"));
    assert!(said(b"QFI\xfb....").contains("qcow2"));
    assert!(said(b"").contains("empty"));
    assert!(said(&[b'a'; 2048]).contains("not a tar"));
}

#[test]
fn members_that_would_escape_are_refused() {
    let escape = one("../../etc/passwd", b"x", |_| ());
    assert!(unpacked(&escape).is_err());
    // A link outside, then a member through it: it lands inside.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "out", "/tmp").expect("link");
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    builder.append_data(&mut header, "tmp/", &b""[..]).err();
    let link = builder.into_inner().expect("archive");
    let through = one("out/image-test-escaped", b"x", |_| ());
    let archive = [&link[..link.len() - 1024], &through].concat();
    assert!(unpacked(&archive).is_err(), "the link leads nowhere inside");
    assert!(!std::path::Path::new("/tmp/image-test-escaped").exists());
}

#[test]
fn an_archive_cut_anywhere_is_an_error() {
    let archive = one("a", &[1; 3000], |_| ());
    for cut in [0, 1, 511, 512, 513, 2000, 3511, 3584, 4000] {
        assert!(unpacked(&archive[..cut]).is_err(), "cut at {cut}");
    }
    let zstd = zstd::encode_all(&archive[..], 1).unwrap();
    assert!(unpacked(&zstd[..zstd.len() / 2]).is_err());
}

#[test]
fn a_root_that_expands_without_end_is_refused() {
    // 1.1 GiB of zeros as the data of a directory: nothing is kept of them.
    let size = (1 << 30) + (100 << 20);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_path("d").unwrap();
    header.set_size(size);
    header.set_cksum();
    let plain = || header.as_bytes().chain(std::io::repeat(0).take(size + 1024));
    let packed = zstd::encode_all(plain(), 1).unwrap();
    let mut tree = Tree::new(Limits::default());
    let error = add_tar(&mut tree, &spool(), &packed[..]).unwrap_err().to_string();
    assert!(error.contains("decompression bomb") && error.contains("decompress it first"), "{error}");
    // As it says: what was sent whole is no bomb.
    add_tar(&mut Tree::new(Limits::default()), &spool(), plain()).unwrap();
}

#[test]
fn sizes_that_lie_are_found() {
    let huge = one("a", b"", |header| header.set_size(u64::MAX / 2));
    assert!(matches!(unpacked(&huge), Err(ArchiveError::Spool { .. })));
    let name = one("././@LongLink", b"", |header| {
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
    });
    assert!(matches!(unpacked(&name), Err(ArchiveError::Damaged { .. })));
    let mut flipped = one("a", b"data", |_| ());
    flipped[130] ^= 1;
    assert!(matches!(unpacked(&flipped), Err(ArchiveError::NotTar(_))));
}

#[test]
fn gnu_tar_and_we_agree() {
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().join("root");
    let deep = root.join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("file"), "content").unwrap();
    std::fs::hard_link(deep.join("file"), root.join("hard")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), root.join("sym")).unwrap();
    let mut want = Tree::new(Limits::default());
    let keep = image::DirOptions { owner: image::Owner::Keep, ..image::DirOptions::ROOT };
    image::add_dir(&mut want, &spool(), &root, "", &keep).unwrap();
    for format in ["gnu", "posix"] {
        let output =
            Command::new("tar").arg(format!("--format={format}")).arg("-cC").arg(&root).arg(".").output();
        let Ok(output) = output else {
            eprintln!("SKIPPED: GNU tar cannot be run");
            return;
        };
        let tree = unpacked(&output.stdout).expect("unpacked");
        if format == "posix" {
            assert_eq!(tree.digest().unwrap(), want.digest().unwrap());
        }
        let paths = |tree: &Tree| tree.walk().map(|(path, _)| path).collect::<Vec<_>>();
        assert_eq!(paths(&tree), paths(&want));
    }
}

proptest! {
    #[test]
    fn noise_is_never_a_panic(
        mut noise in prop::collection::vec(any::<u8>(), 0..4096),
        flips in prop::collection::vec((0..1024usize, any::<u8>()), 0..12),
    ) {
        let mut archive = one("some/path", b"0123456789", |_| ());
        for (at, value) in flips {
            archive[at] = value;
        }
        // With a right checksum the damage gets further in.
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&archive[..512]);
        header.set_cksum();
        archive[..512].copy_from_slice(header.as_bytes());
        let _ = unpacked(&archive);
        archive.append(&mut noise);
        let _ = unpacked(&archive);
        let _ = unpacked(&noise);
    }
}
