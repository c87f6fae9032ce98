//! A Debian package: the archive itself, or a right one around a control file and data that are not.
#![no_main]

use std::fs;

use image::debian::{Cache, unpack};
use image::{Limits, PackageLock, Spool, hex};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fuzz_target!(|input: (bool, &[u8], &[u8])| {
    let (raw, control, data) = input;
    let bytes = if raw { [control, data].concat() } else { package(control, data) };
    let dir = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(dir.path()).expect("a cache");
    let sha256 = hex(&Sha256::digest(&bytes));
    fs::write(dir.path().join("sha256").join(&sha256), &bytes).expect("writing");
    let size = bytes.len() as u64;
    let lock = PackageLock { name: "a1".into(), version: "1".into(), arch: "amd64".into(), sha256, size };
    let spool = Spool::new(dir.path(), 1 << 20).expect("a spool");
    let limits = Limits { entries: 1000, bytes: 1 << 20, xattr_bytes: 4096 };
    if let Ok(root) = unpack(&[lock], &cache, &spool, limits, &|_| {}) {
        root.tree.digest().expect("what was spooled can be read");
    }
});

/// deb(5), with plain tars.
fn package(control: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    let text = [b"Package: a1\nVersion: 1\nArchitecture: amd64\n", control].concat();
    let mut tar = header("./control", text.len());
    tar.extend_from_slice(&text);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    for (name, content) in [("debian-binary", &b"2.0\n"[..]), ("control.tar", &tar), ("data.tar", data)] {
        bytes.extend_from_slice(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, content.len()).as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
    }
    bytes
}

/// A ustar header of a regular file.
fn header(name: &str, size: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}
