//! The balloon as a driver sees it.

use std::sync::Arc;

use bus::Saved;
use guestmem::{GuestMemory, WriteObserver};
use virtio::driver_mock::Driver;
use virtio::features::desc;

use super::{Balloon, BalloonState};

/// Pages that the mock leaves alone.
const PAGES: u64 = 0x80_0000;

fn driver() -> (Driver<Balloon>, super::Returned) {
    let balloon = Balloon::new();
    let returned = balloon.returned();
    (Driver::started(Arc::new(balloon)), returned)
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
        let (mut driver, returned) = driver();
        driver.memory.write(PAGES, &[7; 5 * 4096]).unwrap();
        report(&mut driver, queue, PAGES + 4096, 2 * 4096);
        assert_eq!(returned.bytes(), 2 * 4096);
        let seen = [0, 4095, 4096, 3 * 4096 - 1, 3 * 4096].map(|at| byte(&driver.memory, PAGES + at));
        assert_eq!(seen, [7, 7, 0, 0, 7]);
        // They are as good as any afterwards.
        driver.memory.write(PAGES + 4096, &[9; 4096]).unwrap();
        assert_eq!(byte(&driver.memory, PAGES + 8191), 9);
    }
}

#[test]
fn only_whole_pages_of_ram_go() {
    let (mut driver, returned) = driver();
    driver.memory.write(PAGES, &[7; 3 * 4096]).unwrap();
    report(&mut driver, 2, PAGES + 1, 2 * 4096);
    assert_eq!(returned.bytes(), 4096);
    assert_eq!([1, 4096, 8192].map(|at| byte(&driver.memory, PAGES + at)), [7, 0, 7]);
    report(&mut driver, 2, PAGES + 5, 100);
    assert_eq!(returned.bytes(), 4096);
}

#[test]
fn an_inflated_balloon_gives_its_pages_back() {
    let (mut driver, returned) = driver();
    driver.memory.write(PAGES, &[7; 2 * 4096]).unwrap();
    let numbers = [(PAGES >> 12) as u32, u32::MAX].map(u32::to_le_bytes).concat();
    driver.request(0, &[&numbers], &[]);
    driver.request(1, &[&numbers], &[]);
    assert_eq!(returned.bytes(), 4096);
    assert_eq!([0, 4096].map(|at| byte(&driver.memory, PAGES + at)), [0, 7]);
}

#[test]
fn what_is_held_for_a_snapshot_stays() {
    struct Snapshot;
    impl WriteObserver for Snapshot {
        fn before_first_write(&self, _: &GuestMemory, _: usize) {}
    }
    let (mut driver, returned) = driver();
    driver.memory.write(PAGES, &[7; 4096]).unwrap();
    assert!(driver.memory.hold(Arc::new(Snapshot)).is_ok());
    report(&mut driver, 2, PAGES, 4096);
    assert_eq!((returned.bytes(), byte(&driver.memory, PAGES)), (0, 7));
    driver.memory.release();
    report(&mut driver, 2, PAGES, 4096);
    assert_eq!((returned.bytes(), byte(&driver.memory, PAGES)), (4096, 0));
}

#[test]
fn nothing_is_asked_of_the_guest_and_its_word_travels() {
    let (driver, _) = driver();
    driver.set(0x104, 12);
    assert_eq!(driver.config(0, 8), [0, 0, 0, 0, 12, 0, 0, 0]);
    let state = driver.transport.save();
    let mut other = Driver::in_memory(driver.memory.clone(), Arc::new(Balloon::new()));
    other.transport.restore(&state).unwrap();
    other.adopt(&driver);
    assert_eq!(other.config(4, 1), [12]);
    report(&mut other, 2, PAGES, 4096);
    let newer = virtio::VirtioState { device: BalloonState { version: 2, actual: 0 }, ..state };
    assert!(other.transport.restore(&newer).is_err());
}
