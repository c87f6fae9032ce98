//! Every virtio device against drivers that break one rule of the queues at a time: what the peers' devices wrote out of
//! bounds for, or looped over.

use std::sync::Arc;

use bus::Saved;
use devices::Tail;
use devices::balloon::Balloon;
use devices::blk::Blk;
use devices::console::Console;
use devices::fs::Fs;
use devices::net::Net;
use devices::rng::Rng;
use devices::vsock::Vsock;
use disk::{FileDisk, Overlay};
use virtio::driver_mock::{Driver, RAM};
use virtio::features::{desc, status};
use virtio::{MAX_CHAIN, ROUNDS, VirtioDevice};

/// Where tests put tables and buffers: below the mock's arena.
const TABLE: u64 = 0x1000;
const DATA: u64 = 0x8_0000;

fn blk() -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let base = Arc::new(FileDisk::section(Arc::new(file), 0, 1 << 20).unwrap());
    Blk::new(Arc::new(Overlay::new(base, tempfile::tempfile().unwrap()).unwrap()), "rules")
}

fn folder() -> Fs {
    let folder = hostfs::Folder::open(std::path::Path::new("src"), "/srv", true).unwrap();
    Fs::new(vec![folder])
}

/// Writes the descriptors of one broken request, which begins with descriptor 0 of a queue.
struct Table<'a>(&'a dyn Fn(Option<u64>, u16, u64, u32, u16, u16));

impl Table<'_> {
    /// In the queue's own table.
    fn ring(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        (self.0)(None, index, gpa, len, flags, next);
    }

    /// In a table at `at`.
    fn at(&self, at: u64, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        (self.0)(Some(at), index, gpa, len, flags, next);
    }
}

type Break = fn(&Table<'_>);

const BREAKS: &[(&str, Break)] = &[
    ("a loop of one", |t| t.ring(0, DATA, 8, desc::NEXT, 0)),
    ("a loop of three, of things to write", |t| {
        for (index, next) in [(0, 1), (1, 2), (2, 0)] {
            t.ring(index, DATA, 8, desc::NEXT | desc::WRITE, next);
        }
    }),
    ("the longest length", |t| t.ring(0, 0, u32::MAX, desc::WRITE, 0)),
    ("4 GiB in pieces that fit", |t| {
        for index in 0..8 {
            t.at(TABLE, index, 0, 0xc0_0000, desc::NEXT, index + 1);
        }
        for index in 8..MAX_CHAIN as u16 {
            t.at(TABLE, index, 0, 0xc0_0000, desc::NEXT | desc::WRITE, index + 1);
        }
        t.at(TABLE, MAX_CHAIN as u16 - 1, 0, 0xc0_0000, desc::WRITE, 0);
        t.ring(0, TABLE, MAX_CHAIN as u32 * 16, desc::INDIRECT, 0);
    }),
    ("the last byte of memory and the one behind it", |t| t.ring(0, RAM - 1, 2, desc::WRITE, 0)),
    ("an address that wraps", |t| t.ring(0, u64::MAX - 3, 8, 0, 0)),
    ("an address of nothing", |t| t.ring(0, 1 << 52, 8, desc::WRITE, 0)),
    ("a device's registers", |t| t.ring(0, 0xfeb0_0000, 8, desc::WRITE, 0)),
    ("a next outside the table", |t| t.ring(0, DATA, 8, desc::NEXT, u16::MAX)),
    ("an indirect table in an indirect table", |t| {
        t.at(TABLE, 0, TABLE, 16, desc::INDIRECT, 0);
        t.ring(0, TABLE, 16, desc::INDIRECT, 0);
    }),
    ("an indirect table that is itself the queue's", |t| {
        t.ring(0, TABLE, 32, desc::INDIRECT | desc::NEXT, 0);
    }),
    ("an indirect table at the end of memory", |t| t.ring(0, RAM - 16, 32, desc::INDIRECT, 0)),
    ("an indirect loop", |t| {
        t.at(TABLE, 0, DATA, 8, desc::NEXT, 1);
        t.at(TABLE, 1, DATA, 8, desc::NEXT, 0);
        t.ring(0, TABLE, 32, desc::INDIRECT, 0);
    }),
    ("an indirect table longer than a chain may be", |t| {
        for index in 0..=MAX_CHAIN as u16 {
            t.at(TABLE, index, DATA, 1, desc::NEXT, index + 1);
        }
        t.ring(0, TABLE, u32::MAX / 16 * 16, desc::INDIRECT, 0);
    }),
];

/// Each break on each queue: no panic, no hang, memory outside the buffers as it was, and a reset heals.
fn broken<D: VirtioDevice>(name: &str, make: impl Fn() -> D) {
    for (rule, break_it) in BREAKS {
        let mut driver = Driver::started(Arc::new(make()));
        for queue in 0..driver.queues.len() {
            driver.memory.write(RAM - 16, &[0xa5; 16]).unwrap();
            break_it(&Table(&|at, index, gpa, len, flags, next| match at {
                Some(at) => driver.write_desc_at(at + 16 * u64::from(index), gpa, len, flags, next),
                None => driver.write_desc(queue, index, gpa, len, flags, next),
            }));
            driver.publish(queue, 0);
            driver.kick(queue);
            let mut last = [0; 16];
            driver.memory.read(RAM - 16, &mut last).unwrap();
            assert_eq!(last, [0xa5; 16], "{name}, queue {queue}: {rule}: wrote where it must not");
            driver.transport.pause();
            driver.transport.resume();
            driver.start(u64::MAX);
            assert_eq!(driver.get(0x070), 15, "{name}, queue {queue}: {rule}: a reset does not heal");
        }
    }
}

/// A queue of a device that works cannot be moved, resized or given other features.
fn fixed<D: VirtioDevice>(name: &str, make: impl Fn() -> D) {
    let mut driver = Driver::started(Arc::new(make()));
    let before = driver.transport.save().transport;
    for queue in 0..driver.queues.len() as u32 {
        for size in [1, 2, 0x8000, 0xffff] {
            driver.place_queue(queue, size, 0x1000, 0x2000, 0x3000);
            driver.place_queue(queue, size, RAM - 64, RAM - 8, u64::MAX - 7);
        }
        driver.set(0x024, 0);
        driver.set(0x020, 0);
        driver.set(0x070, status::ACKNOWLEDGE | status::DRIVER);
        driver.kick(queue as usize);
    }
    let mut after = driver.transport.save().transport;
    // Which queue is selected is the driver's own affair, and which half of the features.
    (after.queue_sel, after.driver_features_sel) = (before.queue_sel, before.driver_features_sel);
    assert_eq!(after, before, "{name}");
    // More offered than the ring has.
    let avail = driver.queues[0].avail;
    driver.memory.store_u16(avail + 2, 0x7fff).unwrap();
    driver.kick(0);
    driver.start(u64::MAX);
}

macro_rules! each {
    ($check:ident) => {
        $check("blk", blk);
        $check("fs", folder);
        $check("rng", Rng::from_host);
        $check("balloon", Balloon::new);
        $check("console", || Console::new(Box::new(Tail::new(4096))));
        $check("vsock", || Vsock::new(3));
        $check("net", || Net::new(Some(Default::default())).unwrap());
        $check("net without carrier", || Net::new(None).unwrap());
    };
}

#[test]
fn every_device_survives_every_broken_rule() {
    each!(broken);
}

#[test]
fn no_device_is_reconfigured_while_it_works() {
    each!(fixed);
}

/// A program for the disk alone: each sector holds what the next request is, so that a request, once done, has offered
/// the next, and there is always one more. The thread that notified comes back all the same.
#[test]
fn requests_that_offer_the_next_one_do_not_keep_the_thread() {
    const SECTORS: u64 = 1 << 16;
    let file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        use std::os::unix::fs::FileExt;
        let mut words = [0; 10];
        words[..2].copy_from_slice(&(sector as u16).wrapping_add(2).to_le_bytes());
        words[2..].copy_from_slice(&((sector + 1) % SECTORS).to_le_bytes());
        file.write_all_at(&words, sector * 512).unwrap();
    }
    file.set_len(SECTORS * 512).unwrap();
    let disk = FileDisk::section(Arc::new(file), 0, SECTORS * 512).unwrap();
    let mut driver = Driver::started(Arc::new(Blk::new(Arc::new(disk), "loop")));
    let size = u64::from(driver.queues[0].size);
    let (avail, used) = (driver.queues[0].avail, driver.queues[0].used);
    // A read of sector 0: into the available index, the header's sector, and nowhere that matters.
    let parts = [
        (DATA, 16, 0),
        (avail + 2, 2, desc::WRITE),
        (DATA + 8, 8, desc::WRITE),
        (DATA + 64, 502, desc::WRITE),
        (DATA + 1024, 1, desc::WRITE),
    ];
    for (index, (gpa, len, flags)) in (0..).zip(parts) {
        let next = if index == 4 { 0 } else { desc::NEXT };
        driver.write_desc(0, index, gpa, len, flags | next, index + 1);
    }
    driver.memory.fill_zero(avail + 4, 2 * size as usize).unwrap();
    driver.publish(0, 0);
    driver.kick(0);
    let done = |driver: &Driver<Blk>| u64::from(driver.memory.load_u16(used + 2).unwrap());
    assert_eq!(done(&driver), ROUNDS as u64 * size, "as much as one notification may take");
    assert!(driver.line.edges() > 0, "the driver is told to come back");
    driver.set(0x064, driver.get(0x060));
    assert_eq!(done(&driver), 2 * ROUNDS as u64 * size, "and goes on when it acknowledges");
    driver.start(u64::MAX);
    let idle = done(&driver);
    driver.set(0x064, 3);
    assert_eq!(done(&driver), idle, "a reset ends it");
}
