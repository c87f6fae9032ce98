//! Guests that keep no rules: nothing panics, nothing grows without limit, nothing outside is touched.

mod common;

use std::fs;

use common::*;
use hostfs::handles::MAX_HANDLES;
use proptest::prelude::*;

#[test]
fn nothing_is_served_before_init() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::raw(&[(dir.path(), "/srv", false)]);
    assert!(g.lookup(1, "0").is_err() && g.opendir(1).is_err());
    assert_eq!(g.ask(26, 0, &u32s(&[6, 0, 0, 0])), Err(71), "EPROTO");
    assert_eq!(g.ask(26, 0, &u32s(&[8, 0, 0, 0])).map(|b| at_u32(&b, 0)), Ok(7));
    assert!(g.lookup(1, "0").is_err());
    let init = g.init();
    assert_eq!((at_u32(&init, 0), at_u32(&init, 4), at_u32(&init, 20), init.len()), (7, 38, 1 << 20, 64));
    assert!(g.lookup(1, "0").is_ok());
    g.ask(38, 0, &[]).unwrap();
    assert!(g.lookup(1, "0").is_err());
}

#[test]
fn open_files_have_a_limit_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let all: Vec<u64> = (0..MAX_HANDLES).map(|_| g.opendir(1).unwrap()).collect();
    assert_eq!(g.opendir(TOP), Err(ENFILE));
    assert_eq!(g.create(TOP, "a", RDWR, 0o600).err(), Some(ENFILE));
    assert!(!dir.path().join("a").exists());
    g.release(all[0]);
    assert!(g.opendir(TOP).is_ok());
    // A new session lets go of everything.
    g.init();
    assert!(g.opendir(TOP).is_ok());
}

#[test]
fn what_is_known_is_forgotten_when_the_guest_says_so() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "").unwrap();
    let mut g = Guest::on(dir.path());
    let before = postcard::to_stdvec(&g.server.save()).unwrap().len();
    let a = g.find("a").unwrap().node;
    g.find("a").unwrap();
    g.ask(2, a, &u64s(&[1])).unwrap();
    assert!(g.stat(a).is_ok(), "told twice, forgotten once");
    let mut batch = u32s(&[2, 0]);
    batch.extend(u64s(&[a, 1, TOP, 1]));
    g.ask(42, 0, &batch).unwrap();
    assert_eq!(g.stat(a), Err(ESTALE));
    assert!(g.stat(TOP).is_ok(), "folders stay");
    for times in [u64::MAX, 0] {
        g.ask(2, TOP, &u64s(&[times])).unwrap();
        g.ask(2, 999, &u64s(&[times])).unwrap();
    }
    let after = postcard::to_stdvec(&g.server.save()).unwrap().len();
    assert!(after <= before + 8, "{before} {after}");
}

#[test]
fn lengths_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Guest::on(dir.path());
    let (_, fh) = g.create(TOP, "a", RDWR, 0o600).unwrap();
    let mut args = u64s(&[fh, 0]);
    args.extend(u32s(&[1000, 0, 0, 0, 0, 0]));
    args.extend(b"ten bytes.");
    assert_eq!(g.ask(16, TOP, &args), Err(EINVAL), "WRITE of more than there is");
    g.write(fh, 0, &[7; 5000]).unwrap();
    g.room = 16 + 100;
    assert_eq!(g.read(fh, 0, u32::MAX).unwrap().len(), 100, "as much as there is room for");
    g.room = 20;
    assert_eq!(g.stat(TOP), Err(EINVAL), "no room for the reply");
    g.room = 2 << 20;
    assert_eq!(g.read(fh, u64::MAX, 10).map_err(|e| e == EINVAL), Err(true));
    assert_eq!(g.write(fh, u64::MAX - 1, b"abc"), Err(EINVAL));
    let mut header = u32s(&[41, 1]);
    header.extend([0; 32]);
    for request in [&header[..], &header[..39], &[][..], &[0; 40][..]] {
        g.server.answer(request, 4096, &mut g.reply);
        assert!(g.reply.bytes().len() <= 16);
    }
}

/// An argument as a guest might write it: small numbers are nodes, handles and flags.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..8u64, 2 => 1020..1030u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let known = ["a", "b", "d", "up", "0", "..", ".", "", "d/f"].map(|n| Just(n.as_bytes().to_vec()));
    prop_oneof![8 => prop::strategy::Union::new(known), 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

type Ask = (u32, u64, Vec<u64>, Vec<Vec<u8>>, usize);

fn request() -> impl Strategy<Value = Ask> {
    let op = prop_oneof![20 => 1..53u32, 1 => any::<u32>()];
    let room = prop_oneof![5 => Just(70_000usize), 1 => 0..200usize];
    let (words, names) = (prop::collection::vec(word(), 0..8), prop::collection::vec(name(), 0..3));
    (op, word(), words, names, room)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_requests_are_survived(requests in prop::collection::vec(request(), 1..60)) {
        let top = tempfile::tempdir().unwrap();
        let (dir, outside) = (top.path().join("shared"), top.path().join("outside"));
        fs::create_dir_all(dir.join("d")).unwrap();
        fs::write(&outside, "untouched").unwrap();
        fs::write(dir.join("a"), "file").unwrap();
        std::os::unix::fs::symlink("..", dir.join("up")).unwrap();
        let mut g = Guest::new(&[(&dir, "/srv", false), (&dir, "/again", true)]);
        for (op, node, words, names, room) in requests {
            let mut args: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            // The fixed parts are 8, 16 or more bytes; names begin wherever these end.
            names.iter().for_each(|n| args.extend(n.iter().copied().chain([0])));
            g.room = room;
            let _ = g.ask(op, node, &args);
        }
        prop_assert_eq!(fs::read(&outside).unwrap(), b"untouched");
        let names = fs::read_dir(top.path()).unwrap().count();
        prop_assert_eq!(names, 2);
        let state = g.server.save();
        prop_assert_eq!(Guest::raw(&[(&dir, "/srv", false)]).server.restore(&state), Ok(()));
    }
}
