//! The balloon as a driver sees it.

use std::sync::Arc;

use bus::Saved;
use guestmem::{GuestMemory, WriteObserver};
use virtio::driver_mock::Driver;
use virtio::features::desc;

use super::{Balloon, BalloonState};

/// Pages that the mock leaves alone.
const PAGES: u64 = 0x80_0000;

fn driver() -> (Driver<Balloon>, Arc<Balloon>) {
    let balloon = Arc::new(Balloon::new());
    (Driver::started(balloon.clone()), balloon)
}

/// Reports one piece of free memory.
fn report(driver: &mut Driver<Balloon>, queue: usize, gpa: u64, len: u32) {
    driver.write_desc(queue, 0, gpa, len, desc::WRITE, 0);
    driver.publish(queue, 0);
    driver.kick(queue);
    assert_eq!(driver.used(queue).len(), 1);
}

fn byte(memory: &GuestMemory, gpa: u64) -> u8 {
    memory.read_le(gpa).unwrap()
}

#[test]
fn reported_pages_read_as_zeros_wherever_the_driver_looks_for_the_queue() {
    for queue in [2, 4] {
        let (mut driver, balloon) = driver();
        driver.memory.write(PAGES, &[7; 5 * 4096]).unwrap();
        report(&mut driver, queue, PAGES + 4096, 2 * 4096);
        assert_eq!(balloon.returned(), 2 * 4096);
        let seen = [0, 4095, 4096, 3 * 4096 - 1, 3 * 4096].map(|at| byte(&driver.memory, PAGES + at));
        assert_eq!(seen, [7, 7, 0, 0, 7]);
        // They are as good as any afterwards.
        driver.memory.write(PAGES + 4096, &[9; 4096]).unwrap();
        assert_eq!(byte(&driver.memory, PAGES + 8191), 9);
    }
}

#[test]
fn only_whole_pages_of_ram_go() {
    let (mut driver, balloon) = driver();
    driver.memory.write(PAGES, &[7; 3 * 4096]).unwrap();
    report(&mut driver, 2, PAGES + 1, 2 * 4096);
    assert_eq!(balloon.returned(), 4096);
    assert_eq!([1, 4096, 8192].map(|at| byte(&driver.memory, PAGES + at)), [7, 0, 7]);
    report(&mut driver, 2, PAGES + 5, 100);
    assert_eq!(balloon.returned(), 4096);
}

#[test]
fn an_inflated_balloon_gives_its_pages_back() {
    let (mut driver, balloon) = driver();
    driver.memory.write(PAGES, &[7; 2 * 4096]).unwrap();
    let numbers = [(PAGES >> 12) as u32, u32::MAX].map(u32::to_le_bytes).concat();
    driver.request(0, &[&numbers], &[]);
    driver.request(1, &[&numbers], &[]);
    assert_eq!(balloon.returned(), 4096);
    assert_eq!([0, 4096].map(|at| byte(&driver.memory, PAGES + at)), [0, 7]);
    // In any order, the same page twice.
    driver.memory.write(PAGES, &[7; 5 * 4096]).unwrap();
    let first = (PAGES >> 12) as u32;
    let numbers = [first + 4, first + 1, first, first + 1].map(u32::to_le_bytes).concat();
    driver.request(0, &[&numbers], &[]);
    assert_eq!([0, 1, 2, 3, 4].map(|at| byte(&driver.memory, PAGES + at * 4096)), [0, 0, 7, 7, 0]);
}

#[test]
fn the_guest_is_asked_and_says_what_it_has() {
    let (driver, balloon) = driver();
    assert_eq!((driver.config(0, 4), balloon.size()), (vec![0; 4], 0));
    balloon.want((3 << 20) + 5);
    assert_eq!(driver.config(0, 4), 768u32.to_le_bytes());
    assert_eq!(driver.get(0x60) & 2, 2, "its configuration changed");
    driver.set(0x104, 700);
    assert_eq!(balloon.size(), 700 << 12);
    // More than 32 bits of pages cannot be asked for.
    balloon.want(u64::MAX);
    assert_eq!(driver.config(0, 4), [0xff; 4]);
}

#[test]
fn what_is_held_for_a_snapshot_stays() {
    struct Snapshot;
    impl WriteObserver for Snapshot {
        fn before_first_write(&self, _: &GuestMemory, _: usize) {}
    }
    let (mut driver, balloon) = driver();
    driver.memory.write(PAGES, &[7; 4096]).unwrap();
    assert!(driver.memory.hold(Arc::new(Snapshot)).is_ok());
    report(&mut driver, 2, PAGES, 4096);
    assert_eq!((balloon.returned(), byte(&driver.memory, PAGES)), (0, 7));
    driver.memory.release();
    report(&mut driver, 2, PAGES, 4096);
    assert_eq!((balloon.returned(), byte(&driver.memory, PAGES)), (4096, 0));
}

#[test]
fn what_the_guest_has_in_it_travels() {
    let (driver, _) = driver();
    driver.set(0x104, 12);
    assert_eq!(driver.config(0, 8), [0, 0, 0, 0, 12, 0, 0, 0]);
    let state = driver.transport.save();
    let mut other = Driver::in_memory(driver.memory.clone(), Arc::new(Balloon::new()));
    other.transport.restore(&state).unwrap();
    other.adopt(&driver);
    assert_eq!(other.config(0, 8), [12, 0, 0, 0, 12, 0, 0, 0], "and it is asked for no other");
    report(&mut other, 2, PAGES, 4096);
    let newer = virtio::VirtioState { device: BalloonState { version: 2, actual: 0 }, ..state };
    assert!(other.transport.restore(&newer).is_err());
}
