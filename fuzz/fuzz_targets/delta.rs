//! Deltas that lie consistently: head and digest are made right, so that everything behind the digest is reached.
//! Nothing panics, nothing is made that is not the file that the head names, nothing is left behind.
//!
//! Input: pages of the new file, and the three streams, each packed (or left as it is, where its first byte is 0).
#![no_main]

use std::fs;
use std::io::Write;
use std::sync::OnceLock;

use artifact::hash::Hasher;
use artifact::{Digest, MachineFile};
use libfuzzer_sys::fuzz_target;

struct Place {
    dir: tempfile::TempDir,
    old: MachineFile,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("old.smolmachine");
        fs::write(&path, include_bytes!("../../crates/artifact/tests/golden/format1.bin")).expect("a file");
        let old = MachineFile::open_path(&path).expect("the golden file");
        Place { dir, old }
    })
}

fuzz_target!(|input: (u32, [Vec<u8>; 3], bool)| {
    let (pages, streams, same) = input;
    let place = place();
    let streams = streams.map(|bytes| match bytes.split_first() {
        Some((0, raw)) => raw.to_vec(),
        Some((_, plain)) => zstd::encode_all(plain, 1).expect("a frame"),
        None => zstd::encode_all(&b""[..], 1).expect("a frame"),
    });
    let new = if same { place.old.id() } else { Digest::of(b"another") };
    let mut head = b"\x89SMOLVD\n\x01\0\0\0\0\0\0\0".to_vec();
    head.extend_from_slice(place.old.id().as_bytes());
    head.extend_from_slice(new.as_bytes());
    // Mostly few: what is written is bounded by what the head says.
    let pages = if pages % 16 == 0 { u64::from(pages) << 20 } else { u64::from(pages % 256) };
    head.extend_from_slice(&(pages * 4096).to_le_bytes());
    streams.iter().for_each(|stream| head.extend_from_slice(&(stream.len() as u64).to_le_bytes()));
    let mut hasher = Hasher::new();
    hasher.update(&head);
    streams.iter().for_each(|stream| hasher.update(stream));
    head.extend_from_slice(hasher.finish().as_bytes());
    let path = place.dir.path().join("delta");
    let mut file = fs::File::create(&path).expect("a file");
    file.write_all(&head).expect("the head");
    streams.iter().for_each(|stream| file.write_all(stream).expect("a stream"));
    drop(file);
    let out = place.dir.path().join("new.smolmachine");
    if delta::apply(&place.old, &path, &out).is_ok() {
        assert!(same);
        assert_eq!(fs::read(&out).expect("the new file"), fs::read(place.old.path()).expect("the old file"));
        fs::remove_file(&out).expect("removed");
    }
    let left: Vec<_> = fs::read_dir(place.dir.path()).expect("the place").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
});
