//! The console as a driver sees it.

use std::sync::Arc;

use bus::Saved;
use virtio::VirtioState;
use virtio::driver_mock::Driver;

use super::{Console, ConsoleState, INPUT_LIMIT};
use crate::Tail;

fn console() -> (Driver<Console>, Tail) {
    let out = Tail::new(1 << 16);
    (Driver::started(Arc::new(Console::new(Box::new(out.clone())))), out)
}

#[test]
fn output_goes_out_and_is_bounded() {
    let (mut driver, out) = console();
    let used = driver.request(1, &[b"hello ", b"world"], &[]);
    assert_eq!((used.len, out.take()), (0, b"hello world".to_vec()));
    let long = vec![b'x'; 3 << 19];
    driver.request(1, &[&long], &[]);
    assert_eq!((out.contents().len(), out.dropped()), (1 << 16, (1 << 20) - (1 << 16)));
}

#[test]
fn input_waits_for_buffers_and_is_bounded() {
    let (mut driver, _) = console();
    let device = driver.transport.device().clone();
    assert_eq!(device.input(b"abc"), 3);
    assert_eq!(device.input(&vec![b'-'; INPUT_LIMIT]), INPUT_LIMIT - 3);
    assert_eq!(device.input(b"no room"), 0);
    driver.offer(0, &[], &[2, 2]).unwrap();
    driver.kick(0);
    let used = driver.used(0);
    assert_eq!((used[0].len, &used[0].data[..]), (4, &b"abc-"[..]));
    // With a buffer waiting, input arrives and interrupts at once.
    for _ in 0..17 {
        driver.offer(0, &[], &[4096]).unwrap();
    }
    driver.kick(0);
    assert_eq!(driver.used(0).iter().map(|u| u.len as usize).sum::<usize>(), INPUT_LIMIT - 4);
    let edges = driver.line.edges();
    device.input(b"now");
    assert_eq!(driver.line.edges(), edges + 1);
    assert_eq!(&driver.used(0)[0].data[..3], b"now");
}

#[test]
fn the_window_size_is_configuration() {
    let (driver, _) = console();
    assert_eq!(driver.config(0, 4), [80, 0, 25, 0]);
    driver.transport.device().resize(300, 50);
    assert_eq!((driver.config(0, 4), driver.line.edges()), (vec![44, 1, 50, 0], 1));
    assert_eq!((driver.get(0x060), driver.get(0x0fc)), (2, 1));
}

#[test]
fn a_restored_console_still_has_its_input() {
    let (driver, _) = console();
    driver.transport.device().input(b"typed ahead");
    driver.transport.pause();
    driver.transport.device().input(b"!");
    let state = driver.transport.save();
    let mut other = Driver::in_memory(driver.memory.clone(), Arc::new(Console::new(Box::new(Tail::new(8)))));
    other.transport.restore(&state).unwrap();
    other.adopt(&driver);
    other.transport.resume();
    assert_eq!(&other.request(0, &[], &[64]).data[..12], b"typed ahead!");
    for bad in [
        ConsoleState { version: 9, ..state.device.clone() },
        ConsoleState { input: vec![0; INPUT_LIMIT + 1], ..state.device.clone() },
    ] {
        let bad = VirtioState { device: bad, transport: state.transport.clone() };
        assert!(other.transport.restore(&bad).is_err());
    }
}

#[test]
fn while_paused_input_touches_no_guest_memory() {
    let (mut driver, _) = console();
    driver.offer(0, &[], &[16]).unwrap();
    driver.kick(0);
    driver.transport.pause();
    driver.transport.device().input(b"later");
    assert_eq!(driver.used(0), []);
    driver.transport.resume();
    assert_eq!(&driver.used(0)[0].data[..5], b"later");
}
