//! Requests of a hostile guest to the server of shared folders: nothing panics, nothing beside the folder changes, and
//! what is saved afterwards can be restored.
//!
//! Input: requests, each a length (two bytes, of what follows the header), a byte of room (times 600), the header's
//! opcode (one byte) and node (one byte; 255: the last that was told), and the rest.
#![no_main]

use std::fs;
use std::sync::OnceLock;

use hostfs::{Folder, Ids, Reply, Server};
use libfuzzer_sys::fuzz_target;

/// A folder beside a file that must stay as it is.
fn place() -> &'static tempfile::TempDir {
    static PLACE: OnceLock<tempfile::TempDir> = OnceLock::new();
    PLACE.get_or_init(|| {
        let top = tempfile::tempdir().expect("a directory");
        fs::write(top.path().join("outside"), "untouched").expect("a file");
        top
    })
}

fn request(opcode: u8, node: u64, args: &[u8]) -> Vec<u8> {
    let mut raw = [(40 + args.len() as u32).to_le_bytes(), u32::from(opcode).to_le_bytes()].concat();
    raw.extend(1u64.to_le_bytes());
    raw.extend(node.to_le_bytes());
    raw.resize(40, 0);
    raw.extend(args);
    raw
}

fuzz_target!(|data: &[u8]| {
    let top = place();
    let dir = top.path().join("shared");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("d")).expect("a folder");
    fs::write(dir.join("d/f"), "content").expect("a file");
    std::os::unix::fs::symlink("..", dir.join("up")).expect("a link");
    let folder = || Folder::open(&dir, "/srv", false).expect("a folder");
    let mut server = Server::new(vec![folder()], Ids::own());
    let (mut reply, mut last) = (Reply::default(), 0);
    let mut init: Vec<u8> = [7u32, 38, 0, u32::MAX].iter().flat_map(|v| v.to_le_bytes()).collect();
    init.resize(64, 0);
    server.answer(&request(26, 0, &init), 4096, &mut reply);
    let mut rest = data;
    while let [low, high, room, opcode, node, tail @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(tail.len());
        let (args, next) = tail.split_at(len);
        let node = if *node == 255 { last } else { u64::from(*node) };
        server.answer(&request(*opcode, node, args), usize::from(*room) * 600, &mut reply);
        assert!(reply.bytes().len() <= (usize::from(*room) * 600).max(16));
        if let Some(told) = reply.bytes().get(16..24) {
            last = u64::from_le_bytes(told.try_into().unwrap_or_default());
        }
        rest = next;
    }
    assert_eq!(fs::read(top.path().join("outside")).expect("the file outside"), b"untouched");
    assert_eq!(fs::read_dir(top.path()).expect("the place").count(), 2);
    let state = server.save();
    let mut again = Server::new(vec![folder()], Ids::own());
    assert_eq!(again.restore(&state), Ok(()));
});
