//! The entropy source as a driver sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus::Saved;
use virtio::driver_mock::Driver;
use virtio::features::desc;

use super::{MAX_REQUEST, Rng, RngState};

#[test]
fn buffers_are_filled_with_random_bytes() {
    let mut driver = Driver::started(Arc::new(Rng::from_host()));
    let a = driver.request(0, &[], &[32, 32]);
    let b = driver.request(0, &[], &[64]);
    assert_eq!((a.len, b.len), (64, 64));
    assert_ne!(a.data, b.data);
    assert_ne!(a.data[48..], [0; 16]);
}

#[test]
fn a_greedy_guest_gets_a_bounded_answer() {
    let given = Arc::new(AtomicU64::new(0));
    let count = given.clone();
    let rng = Rng::new(move |to| {
        count.fetch_add(to.len() as u64, Ordering::Relaxed);
        to.fill(7);
        Ok(())
    });
    let mut driver = Driver::started(Arc::new(rng));
    // Thirty times the same 8 MiB: four gigabytes would be possible the same way.
    let table = driver.alloc(16 * 31, 16);
    for i in 0..30 {
        let next = if i < 29 { desc::NEXT } else { 0 };
        driver.write_desc_at(table + 16 * i, 0x80_0000, 0x80_0000, desc::WRITE | next, i as u16 + 1);
    }
    driver.write_desc(0, 0, table, 16 * 30, desc::INDIRECT, 0);
    driver.publish(0, 0);
    driver.kick(0);
    assert_eq!(driver.used(0)[0].len as u64, MAX_REQUEST);
    assert_eq!(given.load(Ordering::Relaxed), MAX_REQUEST);
}

#[test]
fn a_source_that_fails_gives_an_empty_answer() {
    let mut driver = Driver::started(Arc::new(Rng::new(|_| Err(std::io::ErrorKind::Other.into()))));
    let used = driver.request(0, &[], &[32]);
    assert_eq!((used.len, used.data), (0, vec![0; 32]));
    assert_eq!(driver.request(0, &[b"for reading"], &[]).len, 0);
}

#[test]
fn only_the_version_travels() {
    let driver = Driver::started(Arc::new(Rng::from_host()));
    let state = driver.transport.save();
    let mut other = Driver::in_memory(driver.memory.clone(), Arc::new(Rng::from_host()));
    other.transport.restore(&state).unwrap();
    other.adopt(&driver);
    assert_eq!(other.request(0, &[], &[8]).len, 8);
    let newer = virtio::VirtioState { device: RngState { version: 2 }, ..state };
    assert!(other.transport.restore(&newer).is_err());
}
