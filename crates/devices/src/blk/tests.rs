//! The disk as a guest driver sees it.

use std::io;
use std::sync::{Arc, Mutex};

use bus::{Saved, lock};
use disk::{Disk, NoDisk, SECTOR};
use proptest::prelude::*;
use virtio::VirtioDevice;
use virtio::driver_mock::{Driver, Used};
use virtio::features::status;

use super::regs;
use super::{Blk, BlkState};

/// A disk in memory that can be told to fail.
struct Ram {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    fail: Mutex<Option<io::ErrorKind>>,
    flushes: Mutex<u32>,
}

impl Ram {
    fn new(sectors: usize, read_only: bool) -> Arc<Self> {
        let bytes = (0..sectors * 512).map(|i| (i / 512) as u8).collect();
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            read_only,
            fail: Mutex::default(),
            flushes: Mutex::default(),
        })
    }

    fn failing(&self) -> io::Result<()> {
        lock(&self.fail).map_or(Ok(()), |kind| Err(kind.into()))
    }
}

impl Disk for Ram {
    fn size(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.failing()?;
        to.copy_from_slice(&lock(&self.bytes)[offset as usize..][..to.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.failing()?;
        lock(&self.bytes)[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        *lock(&self.flushes) += 1;
        self.failing()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.failing()?;
        lock(&self.bytes)[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..4].copy_from_slice(&kind.to_le_bytes());
    raw[8..].copy_from_slice(&sector.to_le_bytes());
    raw
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&sector.to_le_bytes());
    raw[8..12].copy_from_slice(&sectors.to_le_bytes());
    raw[12..].copy_from_slice(&flags.to_le_bytes());
    raw
}

struct Bench {
    ram: Arc<Ram>,
    driver: Driver<Blk>,
}

impl Bench {
    fn new(sectors: usize, read_only: bool) -> Self {
        let ram = Ram::new(sectors, read_only);
        let driver = Driver::started(Arc::new(Blk::new(ram.clone(), "root")));
        Self { ram, driver }
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[&[u8]], room: &[u32]) -> Used {
        let header = header(kind, sector);
        let mut readable: Vec<&[u8]> = vec![&header];
        readable.extend(data);
        let mut writable = room.to_vec();
        writable.push(1);
        self.driver.request(0, &readable, &writable)
    }

    fn status(&mut self, kind: u32, sector: u64, data: &[&[u8]], room: &[u32]) -> u8 {
        *self.ask(kind, sector, data, room).data.last().unwrap()
    }
}

#[test]
fn a_slot_is_empty_until_a_disk_is_there_at_a_restore() {
    let mut empty = Driver::started(Arc::new(Blk::slot(Arc::new(NoDisk), "volume0")));
    let used = empty.request(0, &[&header(0, 0)], &[512, 1]);
    assert_eq!(*used.data.last().unwrap(), 1, "nothing can be read");
    let saved = empty.transport.device().save();
    let size = |blk: &Blk| {
        let mut sectors = [0; 8];
        blk.read_config(0, &mut sectors);
        u64::from_le_bytes(sectors)
    };
    for read_only in [false, true] {
        let filled = Blk::slot(Ram::new(16, read_only), "volume0");
        assert_eq!(filled.features(), empty.transport.device().features(), "read-only: {read_only}");
        filled.restore(&saved).unwrap();
        assert_eq!(size(&filled), 16);
        let mounted = filled.save();
        for (sectors, fits) in [(16, true), (24, true), (8, false), (0, false)] {
            let disk: Arc<dyn Disk> = if sectors == 0 { Arc::new(NoDisk) } else { Ram::new(sectors, false) };
            assert_eq!(Blk::slot(disk, "volume0").restore(&mounted).is_ok(), fits, "{sectors} sectors");
        }
    }
}

#[test]
fn a_driver_is_told_of_what_came_into_its_slot() {
    let empty = Driver::started(Arc::new(Blk::slot(Arc::new(disk::NoDisk), "volume0")));
    let saved = empty.transport.save();
    for (disk, told) in [(Ram::new(16, false) as Arc<dyn Disk>, true), (Arc::new(NoDisk), false)] {
        let again = Driver::in_memory(empty.memory.clone(), Arc::new(Blk::slot(disk, "volume0")));
        again.transport.restore(&saved).unwrap();
        assert_eq!(again.get(0x60) & 2 != 0, told, "interrupt status: configuration change");
        again.transport.resume();
        assert_eq!(again.line.edges() > 0, told);
    }
}

#[test]
fn reads_and_writes_move_bytes() {
    let mut b = Bench::new(16, false);
    let used = b.ask(0, 3, &[], &[512, 1024]);
    assert_eq!((used.len, used.data[1536]), (1537, 0));
    assert_eq!((used.data[0], used.data[512], used.data[1535]), (3, 4, 5));
    let used = b.ask(1, 14, &[&[7; 700], &[8; 324]], &[]);
    assert_eq!((used.len, used.data), (1, vec![0]));
    assert_eq!(lock(&b.ram.bytes)[14 * 512..], [[7; 700].to_vec(), [8; 324].to_vec()].concat());
    assert_eq!(b.status(4, 0, &[], &[]), 0);
    assert_eq!(*lock(&b.ram.flushes), 1);
    let stats = b.driver.transport.device().stats();
    assert_eq!((stats.read_bytes, stats.written_bytes), (1536, 1024));
}

#[test]
fn transfers_larger_than_the_bounce_buffer_are_whole() {
    let mut b = Bench::new(4096, false);
    let bytes: Vec<u8> = (0..1u32 << 20).map(|i| (i ^ i >> 8) as u8).collect();
    assert_eq!(b.status(1, 8, &[&bytes], &[]), 0);
    assert_eq!(b.ask(0, 8, &[], &[1 << 20]).data[..1 << 20], bytes);
}

#[test]
fn the_configuration_describes_the_disk() {
    let b = Bench::new(77, false);
    assert_eq!(b.driver.config(0, 8), 77u64.to_le_bytes());
    assert_eq!(b.driver.config(20, 4), 512u32.to_le_bytes());
    assert_eq!(b.driver.config(56, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(b.driver.config(58, 2), [0, 0]);
    assert_eq!(b.driver.offered() & regs::F_RO, 0);
    assert_ne!(Bench::new(1, true).driver.offered() & regs::F_RO, 0);
}

#[test]
fn discard_and_write_zeroes_take_ranges() {
    let mut b = Bench::new(64, false);
    assert_eq!(b.status(11, 0, &[&range(8, 8, 0), &range(24, 8, 0)], &[]), 0);
    assert_eq!(b.status(13, 0, &[&range(40, 1, 1)], &[]), 0);
    let bytes = lock(&b.ram.bytes).clone();
    let zero = |s: usize| bytes[s * 512..(s + 1) * 512].iter().all(|b| *b == 0);
    let zeroed: Vec<_> = (1..64).filter(|s| zero(*s)).collect();
    assert_eq!(zeroed, [8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31, 40]);
    for (kind, ranges, expected) in [
        (11, range(0, 1, 1).to_vec(), 2),        // unmap has no meaning in a discard
        (13, range(0, 1, 2).to_vec(), 2),        // unknown flag
        (11, range(63, 2, 0).to_vec(), 1),       // beyond the end
        (13, range(u64::MAX, 1, 0).to_vec(), 1), // overflow
        (13, range(u64::MAX / 512, 1, 0).to_vec(), 1), // overflow of the end
        (11, range(0, u32::MAX, 0).to_vec(), 1), // more than announced
        (11, vec![0; 15], 1),                    // not a whole range
        (11, vec![], 1),
        (11, range(0, 1, 0).repeat(17), 1),
    ] {
        assert_eq!(b.status(kind, 0, &[&ranges], &[]), expected);
    }
    assert_eq!(*lock(&b.ram.bytes), bytes, "nothing of a refused request is done");
}

#[test]
fn the_disk_says_its_name() {
    let mut b = Bench::new(1, false);
    let used = b.ask(8, 0, &[], &[20]);
    assert_eq!(&used.data[..5], b"root\0");
    assert_eq!((used.len, used.data[20]), (21, 0));
}

#[test]
fn bad_requests_get_an_error_and_the_next_one_works() {
    let mut b = Bench::new(16, false);
    assert_eq!(b.status(99, 0, &[], &[]), 2);
    assert_eq!(b.status(0, 16, &[], &[512]), 1, "beyond the end");
    assert_eq!(b.status(0, 15, &[], &[1024]), 1, "across the end");
    assert_eq!(b.status(1, u64::MAX, &[&[0; 512]], &[]), 1);
    assert_eq!(b.status(1, u64::MAX / 512, &[&[0; 512]], &[]), 1);
    assert_eq!(b.status(0, 0, &[], &[100]), 1, "not whole sectors");
    assert_eq!(b.driver.request(0, &[&[0; 15]], &[1]).data, [1], "short header");
    let used = b.driver.request(0, &[&header(0, 0)], &[]);
    assert_eq!(used.len, 0, "no room for a status");
    assert_eq!(b.driver.request(0, &[], &[1]).data, [1], "no header");
    assert_eq!(b.driver.get(0x070) & status::NEEDS_RESET, 0);
    assert_eq!(b.status(0, 0, &[], &[512]), 0);
    assert_eq!(b.driver.transport.device().stats().host_errors, 0);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut b = Bench::new(4, true);
    let before = lock(&b.ram.bytes).clone();
    assert_eq!(b.status(1, 0, &[&[9; 512]], &[]), 1);
    assert_eq!(b.status(11, 0, &[&range(0, 1, 0)], &[]), 1);
    assert_eq!(b.status(13, 0, &[&range(0, 1, 0)], &[]), 1);
    assert_eq!(*lock(&b.ram.bytes), before);
    assert_eq!(b.status(4, 0, &[], &[]), 0);
}

#[test]
fn a_host_failure_is_an_io_error_and_is_remembered() {
    let mut b = Bench::new(4, false);
    *lock(&b.ram.fail) = Some(io::ErrorKind::StorageFull);
    assert_eq!(b.status(1, 0, &[&[9; 512]], &[]), 1);
    assert_eq!(b.ask(0, 0, &[], &[512]).len, 0);
    assert_eq!(b.status(4, 0, &[], &[]), 1);
    let stats = b.driver.transport.device().stats();
    assert_eq!((stats.host_errors, stats.read_bytes), (3, 0));
    assert!(stats.last_error.unwrap().contains("space"));
    *lock(&b.ram.fail) = None;
    assert_eq!(b.status(1, 0, &[&[9; 512]], &[]), 0);
}

#[test]
fn a_full_ring_is_one_batch_and_one_interrupt() {
    let mut b = Bench::new(256, false);
    for sector in 0..85 {
        b.driver.offer(0, &[&header(0, sector)], &[512, 1]).unwrap();
    }
    b.driver.kick(0);
    let used = b.driver.used(0);
    assert_eq!((used.len(), b.driver.line.edges()), (85, 1));
    assert!(used.iter().enumerate().all(|(i, u)| u.data[0] == i as u8 && u.len == 513));
}

#[test]
fn a_state_fits_only_its_own_disk() {
    let b = Bench::new(16, false);
    let state = b.driver.transport.save();
    let same = Driver::in_memory(b.driver.memory.clone(), Arc::new(Blk::new(Ram::new(16, false), "x")));
    same.transport.restore(&state).unwrap();
    for (sectors, ro) in [(15, false), (17, false), (16, true)] {
        let other =
            Driver::in_memory(b.driver.memory.clone(), Arc::new(Blk::new(Ram::new(sectors, ro), "x")));
        assert!(other.transport.restore(&state).is_err());
    }
    let newer = BlkState { version: 2, ..state.device.clone() };
    let state = virtio::VirtioState { device: newer, ..state };
    assert!(same.transport.restore(&state).unwrap_err().to_string().contains("newer"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any bytes as a request: an answer or none, never a panic, and no write out of bounds.
    #[test]
    fn random_requests_are_survived(
        kind in prop_oneof![0..14u32, any::<u32>()],
        sector in prop_oneof![0..20u64, any::<u64>()],
        data in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1200), 0..4),
        room in prop::collection::vec(0..2000u32, 0..4),
    ) {
        let mut b = Bench::new(16, false);
        let header = header(kind, sector);
        let mut readable: Vec<&[u8]> = vec![&header];
        readable.extend(data.iter().map(Vec::as_slice));
        b.driver.request(0, &readable, &room);
        prop_assert_eq!(b.status(0, 0, &[], &[SECTOR as u32]), 0);
    }
}
