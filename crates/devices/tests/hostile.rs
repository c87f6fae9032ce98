//! Every virtio device against drivers that write whatever they like into their rings.

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
use proptest::prelude::*;
use virtio::VirtioDevice;
use virtio::driver_mock::{Driver, RAM};
use virtio::features::desc;

/// One descriptor, and where in RAM the bytes come from that a device may read.
type Raw = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Raw> {
    let gpa = prop_oneof![4 => 0..RAM - 0x2000, 1 => Just(RAM - 1), 1 => any::<u64>()];
    let len = prop_oneof![4 => 0..5000u32, 1 => Just(0x80_0000), 1 => any::<u32>(), 2 => 16..80u32];
    (gpa, len, prop_oneof![6 => 0..4u16, 1 => any::<u16>()], 0..16u16)
}

fn blk() -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let base = Arc::new(FileDisk::section(Arc::new(file), 0, 1 << 20).unwrap());
    Blk::new(Arc::new(Overlay::new(base, tempfile::tempfile().unwrap()).unwrap()), "hostile")
}

/// A folder that is read-only and this crate's own.
fn folder() -> Fs {
    let folder = hostfs::Folder::open(std::path::Path::new("src"), "/srv", true).unwrap();
    Fs::new(vec![folder])
}

/// Fills RAM and rings with the guest's choice, kicks, saves, restores, and asks for a reset.
fn torture<D: VirtioDevice>(make: impl Fn() -> D, seed: &[u8], table: &[Raw], heads: &[u16]) {
    let mut driver = Driver::started(Arc::new(make()));
    for (page, byte) in (0..RAM / 4096).step_by(32).zip(seed.iter().cycle()) {
        driver.memory.write(page * 4096, &[*byte, 0, 0, 0, 1, 0, 3]).unwrap();
    }
    driver.start(u64::MAX);
    let queues = driver.queues.len();
    for queue in 0..queues {
        for (i, d) in table.iter().enumerate() {
            driver.write_desc(queue, i as u16, d.0, d.1, d.2, d.3);
        }
        for head in heads {
            driver.publish(queue, *head);
            driver.kick(queue);
        }
    }
    driver.transport.pause();
    let state = driver.transport.save();
    let other = Driver::in_memory(driver.memory.clone(), Arc::new(make()));
    other.transport.restore(&state).unwrap();
    other.transport.resume();
    driver.transport.resume();
    driver.start(u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn random_rings_are_survived(
        seed in prop::collection::vec(any::<u8>(), 16),
        table in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(0..16u16, 1..12),
    ) {
        torture(blk, &seed, &table, &heads);
        torture(folder, &seed, &table, &heads);
        torture(Rng::from_host, &seed, &table, &heads);
        torture(Balloon::new, &seed, &table, &heads);
        torture(|| Console::new(Box::new(Tail::new(4096))), &seed, &table, &heads);
        torture(|| Vsock::new(3), &seed, &table, &heads);
        torture(|| Net::new(Some(Default::default())).unwrap(), &seed, &table, &heads);
        torture(|| Net::new(None).unwrap(), &seed, &table, &heads);
    }
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Requests whose chains name the same megabytes again and again: what would be gigabytes if
/// anything were gathered before it is used.
#[test]
fn greedy_requests_cost_no_memory() {
    fn flood<D: VirtioDevice>(device: D, write: u16, header: [u8; 16]) {
        let mut driver = Driver::started(Arc::new(device));
        let head = driver.alloc(16, 16);
        driver.memory.write(head, &header).unwrap();
        let table = driver.alloc(16 * 64, 16);
        let last = driver.alloc(16, 16);
        driver.write_desc_at(table, head, 16, desc::NEXT, 1);
        for i in 1..62u16 {
            let at = table + 16 * u64::from(i);
            driver.write_desc_at(at, 0x40_0000, 0x40_0000, write | desc::NEXT, i + 1);
        }
        driver.write_desc_at(table + 16 * 62, last, 1, desc::WRITE, 0);
        for queue in 0..driver.queues.len() {
            driver.write_desc(queue, 0, table, 16 * 63, desc::INDIRECT, 0);
            for _ in 0..8 {
                driver.publish(queue, 0);
                driver.kick(queue);
                driver.used(queue);
            }
        }
    }
    let before = resident();
    for kind in [0u8, 1] {
        let mut header = [0; 16];
        header[0] = kind;
        flood(blk(), if kind == 0 { desc::WRITE } else { 0 }, header);
    }
    flood(Console::new(Box::new(Tail::new(4096))), 0, [b'x'; 16]);
    for op in [15u8, 16, 42] {
        let mut header = [0; 16];
        header[4] = op;
        flood(folder(), if op == 15 { desc::WRITE } else { 0 }, header);
    }
    flood(Rng::from_host(), desc::WRITE, [0; 16]);
    flood(Balloon::new(), desc::WRITE, [0; 16]);
    flood(Vsock::new(3), 0, [0xff; 16]);
    let grown = resident().saturating_sub(before);
    // Some guests of 16 MiB come and go; 240 MiB is what one request names.
    assert!(grown < 100 << 20, "{} MiB more resident", grown >> 20);
}
