//! What a device keeps for its driver has a cap, however many requests there are and whatever they ask for. A process of
//! its own, since what is looked at is the process's memory, and one test, so that nothing else is in it.

use std::sync::Arc;

use devices::Tail;
use devices::balloon::Balloon;
use devices::blk::Blk;
use devices::console::Console;
use devices::fs::Fs;
use devices::net::Net;
use devices::rng::Rng;
use devices::vsock::Vsock;
use disk::{FileDisk, Overlay};
use virtio::VirtioDevice;
use virtio::driver_mock::{Driver, RAM};
use virtio::features::desc;

/// Requests to each queue: with all queues of all devices 1.8 million.
const REQUESTS: usize = 100_000;
/// Bytes of a request, and of room for its answer: a page and a disk's status byte.
const LENGTH: usize = 128;
const ANSWER: u32 = 4097;
/// Where requests and room for their answers are: below the mock's arena.
const REQUEST: u64 = 0x1000;
const ROOM: u64 = 0x8_0000;
/// What the heap keeps besides: pages that it has no use for now.
const SLACK: u64 = 1 << 20;

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn blk() -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let base = Arc::new(FileDisk::section(Arc::new(file), 0, 1 << 20).unwrap());
    Blk::new(Arc::new(Overlay::new(base, tempfile::tempfile().unwrap()).unwrap()), "memory")
}

fn folder() -> Fs {
    let folder = hostfs::Folder::open(std::path::Path::new("src"), "/srv", true).unwrap();
    Fs::new(vec![folder])
}

/// Floods all queues of a device with requests that each begin with what `request` makes of their number. Nothing is
/// taken from the used rings before a ring is full, and answers are never looked at.
fn flood<D: VirtioDevice>(what: &str, cap: u64, device: D, request: impl Fn(usize) -> [u8; LENGTH]) {
    let mut driver = Driver::started(Arc::new(device));
    driver.memory.write(0, &vec![1; RAM as usize - (1 << 20)]).unwrap();
    driver.start(u64::MAX);
    let before = resident();
    for queue in 0..driver.queues.len() {
        driver.write_desc(queue, 0, REQUEST, LENGTH as u32, desc::NEXT, 1);
        driver.write_desc(queue, 1, ROOM, ANSWER, desc::WRITE, 0);
        let size = usize::from(driver.queues[queue].size);
        for i in 0..REQUESTS {
            driver.memory.write(REQUEST, &request(i)).unwrap();
            driver.publish(queue, 0);
            driver.kick(queue);
            if i % size == size - 1 {
                catch_up(&mut driver, queue);
            }
        }
        let grown = resident().saturating_sub(before);
        assert!(
            grown < cap + SLACK,
            "{what}, queue {queue}: {} KiB more, cap {} KiB",
            grown >> 10,
            cap >> 10
        );
    }
}

/// Waits until a device with a thread of its own took what was offered. Where it takes nothing (a receive queue that
/// waits for packets), the ring starts anew, as it would be too far ahead otherwise.
fn catch_up<D: VirtioDevice>(driver: &mut Driver<D>, queue: usize) {
    let threaded = driver.transport.device().kind() == virtio::features::kind::NET && queue == 1;
    loop {
        let edges = driver.line.edges();
        driver.used(queue);
        driver.used(queue);
        let (taken, offered) = (driver.queues[queue].used_index, driver.queues[queue].avail_index);
        if taken == offered {
            return;
        }
        if !threaded {
            driver.start(u64::MAX);
            driver.write_desc(queue, 0, REQUEST, LENGTH as u32, desc::NEXT, 1);
            driver.write_desc(queue, 1, ROOM, ANSWER, desc::WRITE, 0);
            return;
        }
        assert!(driver.line.wait_beyond(edges), "the device stopped");
    }
}

fn words(words: &[u32]) -> [u8; LENGTH] {
    let mut raw = [0; LENGTH];
    for (to, word) in raw.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    raw
}

/// A connection from a new port each time, to the host.
fn connect(i: usize) -> [u8; LENGTH] {
    // src_cid 3, dst_cid 2, ports, no data, a stream, REQUEST (5.10.6).
    words(&[3, 0, 2, 0, i as u32, 7, 0, 1 | 1 << 16, 0, 1 << 20, 0])
}

/// A first segment from a new port each time, to an address where the policy lets nobody.
fn first_segment(i: usize) -> [u8; LENGTH] {
    let mut raw = [0; LENGTH];
    let frame = &mut raw[12..];
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..26].copy_from_slice(&[
        0x45,
        0,
        0,
        40,
        0,
        0,
        0,
        0,
        64,
        if i.is_multiple_of(2) { 17 } else { 6 },
        0,
        0,
    ]);
    frame[26..34].copy_from_slice(&[10, 0, 2, 15, 127, 0, 0, (i >> 16) as u8]);
    frame[34..36].copy_from_slice(&(i as u16).to_be_bytes());
    frame[36..40].copy_from_slice(&[0, 9, 0, 20]);
    frame[46..48].copy_from_slice(&[0x50, 2]);
    raw
}

#[test]
fn millions_of_requests_cost_no_more_than_the_cap() {
    // A disk moves everything through one buffer of 128 KiB.
    flood("blk", 256 << 10, blk(), |i| words(&[(i % 2) as u32, 0, (i % 64) as u32]));
    // One request and one reply of a MiB each; LOOKUP before INIT, INIT, and READDIRPLUS of nothing.
    flood("fs", 3 << 20, folder(), |i| {
        words(&[LENGTH as u32, [1, 26, 44][i % 3], i as u32, 0, 1, 0, 0, 0, 0, 0, 7, 38])
    });
    flood("rng", 64 << 10, Rng::from_host(), |_| [0; LENGTH]);
    flood("balloon", 64 << 10, Balloon::new(), |_| words(&[u32::MAX; LENGTH / 4]));
    flood("console", 128 << 10, Console::new(Box::new(Tail::new(65_536))), |_| [b'x'; LENGTH]);
    // Connections that nobody listens to: each is owed a reset, which it gives no room for.
    flood("vsock", 512 << 10, Vsock::new(3), connect);
    flood("net", 1 << 20, Net::new(Some(Default::default())).unwrap(), first_segment);
    flood("net without carrier", 256 << 10, Net::new(None).unwrap(), first_segment);
}
