//! A foreign file is named for what it is.

mod common;

use artifact::{Foreign, MachineFile, Problem};
use common::{memfile, noise};

fn what(bytes: &[u8]) -> Foreign {
    let error = MachineFile::open(memfile(bytes), "some/file").unwrap_err();
    let Problem::Foreign { what } = error.problem() else {
        panic!("{error}");
    };
    assert!(error.to_string().starts_with("some/file: this is "), "{error}");
    assert!(!what.advice().is_empty());
    *what
}

fn at(offset: usize, magic: &[u8]) -> String {
    let mut bytes = noise(1, 10_000);
    bytes[offset..offset + magic.len()].copy_from_slice(magic);
    what(&bytes).to_string()
}

#[test]
fn by_signature() {
    let cases: [(usize, &[u8], &str); 14] = [
        (0, b"QFI\xfb\0\0\0\x03", "a qcow2 disk image"),
        (257, b"ustar\x0000", "a tar archive"),
        (257, b"ustar  \0", "a tar archive"),
        (0, b"\x1f\x8b\x08", "a gzip file (perhaps a .tar.gz)"),
        (0, b"\x28\xb5\x2f\xfd", "a zstd file (perhaps a .tar.zst)"),
        (0, b"\xfd7zXZ\0", "an xz file (perhaps a .tar.xz)"),
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"\x7fELF\x02", "an ELF program"),
        (1080, b"\x53\xef", "an ext2/3/4 image"),
        (1024, b"\xe2\xe1\xf5\xe0", "an erofs image"),
        (0, b"hsqs", "a squashfs image"),
        (0, b"070701", "a cpio archive (an initramfs)"),
        (0x202, b"HdrS", "a Linux kernel (bzImage)"),
        (10_000 - 64, b"SMOLPACK", "a pack of another program called smolvm (SMOLPACK)"),
    ];
    for (offset, magic, expected) in cases {
        assert_eq!(at(offset, magic), expected);
    }
    assert_eq!(what(b"SMOLPACK"), Foreign::SmolPack);
}

#[test]
fn by_what_is_not_there() {
    assert_eq!(what(b""), Foreign::Empty);
    assert_eq!(what(&[0; 9000]), Foreign::Unfinished);
    assert_eq!(what(&noise(9, 10_000)), Foreign::Unknown);
    assert_eq!(what(&[7]), Foreign::Unknown);
}

#[test]
fn text_and_definitions() {
    assert_eq!(what(b"name = \"search\"\n\n[run]\ncommand = \"x\"\n"), Foreign::Smolfile);
    assert_eq!(what("just some wörds\n".as_bytes()), Foreign::Text);
    // A character that the end of the looked-at part cuts is still text.
    let long = "ß".repeat(5000);
    assert_eq!(what(format!("x{long}").as_bytes()), Foreign::Text);
}

#[test]
fn what_is_no_regular_file_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    let error = MachineFile::open_path(dir.path()).unwrap_err();
    assert!(error.to_string().contains("this is a directory"), "{error}");
    let fifo = dir.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = MachineFile::open_path(&fifo).unwrap_err();
    assert!(error.to_string().contains("a device, pipe or socket"), "{error}");
    let error = MachineFile::open_path(&dir.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("cannot open it: No such file"), "{error}");
}
