//! The device as a guest driver sees it; what requests mean is tested in `hostfs`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bus::Saved;
use hostfs::Folder;
use virtio::driver_mock::{Driver, Used};

use super::{Fs, TAG};

const INIT: u32 = 26;
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const READ: u32 = 15;

fn device(dir: Option<&Path>) -> Arc<Fs> {
    let folders = dir.map(|dir| Folder::open(dir, "/srv", false).unwrap());
    Arc::new(Fs::new(folders.into_iter().collect()))
}

fn header(op: u32, node: u64, args: usize) -> Vec<u8> {
    let mut raw = [(40 + args as u32).to_le_bytes(), op.to_le_bytes()].concat();
    raw.extend(9u64.to_le_bytes());
    raw.extend(node.to_le_bytes());
    raw.resize(40, 0);
    raw
}

fn ask(driver: &mut Driver<Fs>, op: u32, node: u64, args: &[u8], room: &[u32]) -> Used {
    driver.request(1, &[&header(op, node, args.len()), args], room)
}

fn error(used: &Used) -> i32 {
    i32::from_le_bytes(used.data[4..8].try_into().unwrap())
}

fn word(used: &Used, at: usize) -> u64 {
    u64::from_le_bytes(used.data[at..at + 8].try_into().unwrap())
}

fn init(driver: &mut Driver<Fs>) {
    let mut args: Vec<u8> = [7u32, 41, 0, u32::MAX].iter().flat_map(|v| v.to_le_bytes()).collect();
    args.resize(64, 0);
    let used = ask(driver, INIT, 0, &args, &[80]);
    assert_eq!((used.len, error(&used)), (80, 0));
}

fn read_args(fh: u64, size: u32) -> Vec<u8> {
    let mut args = [fh.to_le_bytes(), 0u64.to_le_bytes()].concat();
    args.extend(size.to_le_bytes());
    args.resize(40, 0);
    args
}

/// A file's node and handle.
fn opened(driver: &mut Driver<Fs>, name: &[u8]) -> (u64, u64) {
    ask(driver, LOOKUP, 1, b"0\0", &[144]);
    let used = ask(driver, LOOKUP, 2, name, &[144]);
    assert_eq!((used.len, error(&used)), (144, 0));
    let node = word(&used, 16);
    let used = ask(driver, OPEN, node, &[0; 8], &[32]);
    (node, word(&used, 16))
}

#[test]
fn the_configuration_is_the_tag_and_one_queue() {
    let driver = Driver::started(device(None));
    assert_eq!(driver.config(0, TAG.len()), TAG.as_bytes());
    assert_eq!(driver.config(TAG.len() as u64, 36 - TAG.len()), vec![0; 36 - TAG.len()]);
    assert_eq!(driver.config(36, 4), 1u32.to_le_bytes());
    assert_eq!(driver.queues.len(), 2);
}

#[test]
fn requests_move_bytes_in_pieces_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ i >> 8) as u8).collect();
    fs::write(dir.path().join("f"), &bytes).unwrap();
    let mut driver = Driver::started(device(Some(dir.path())));
    init(&mut driver);
    let (_, fh) = opened(&mut driver, b"f\0");
    let used = ask(&mut driver, READ, 2, &read_args(fh, 1 << 20), &[16, 1000, 7, 1 << 20]);
    assert_eq!((used.len as usize, &used.data[16..16 + bytes.len()]), (16 + bytes.len(), &bytes[..]));
    assert_eq!(driver.line.edges(), 5, "one interrupt for each");
}

#[test]
fn what_needs_no_answer_gets_none() {
    let mut driver = Driver::started(device(None));
    init(&mut driver);
    let used = driver.request(0, &[&header(FORGET, 5, 8), &1u64.to_le_bytes()], &[]);
    assert_eq!(used.len, 0);
}

#[test]
fn what_is_no_request_is_given_back_and_the_next_one_works() {
    let mut driver = Driver::started(device(None));
    init(&mut driver);
    assert_eq!(driver.request(1, &[&[0; 39]], &[16]).len, 0);
    assert_eq!(driver.request(1, &[], &[16]).len, 0);
    assert_eq!(error(&driver.request(1, &[&[0; 40]], &[16])), -22, "a length that lies");
    assert_eq!(driver.request(1, &[&header(LOOKUP, 1, 0)], &[15]).len, 0, "no room for a header");
    let huge = vec![0u8; 1 << 20];
    assert_eq!(driver.request(1, &[&huge, &huge], &[16]).len, 0);
    init(&mut driver);
}

#[test]
fn a_session_goes_on_after_a_restore_and_a_reset_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "content").unwrap();
    for there in [Some(dir.path()), None] {
        let mut driver = Driver::started(device(Some(dir.path())));
        init(&mut driver);
        let (_, fh) = opened(&mut driver, b"f\0");
        let state = driver.transport.save();
        let mut again = Driver::in_memory(driver.memory.clone(), device(there));
        again.adopt(&driver);
        again.transport.restore(&state).unwrap();
        again.transport.resume();
        let used = ask(&mut again, READ, 2, &read_args(fh, 100), &[16, 100]);
        match there {
            Some(_) => assert_eq!(&used.data[16..23], b"content"),
            None => assert_eq!(error(&used), -116, "ESTALE"),
        }
        assert_eq!(again.transport.device().missing().len(), usize::from(there.is_none()));
        again.start(u64::MAX);
        let used = ask(&mut again, READ, 2, &read_args(fh, 100), &[16, 100]);
        assert_ne!(error(&used), 0, "after a reset there is no session");
        assert!(again.transport.device().missing().is_empty());
    }
}
