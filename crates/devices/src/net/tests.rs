//! The device as a driver sees it. The gateway's answer to ARP is the simplest frame that comes back.

use std::sync::Arc;

use bus::Saved;
use netstack::{Config, GATEWAY_V4, GUEST_MAC, GUEST_V4, MTU};
use virtio::driver_mock::{Driver, Used};

use super::{Net, NetState};

fn device() -> Arc<Net> {
    Arc::new(Net::new(Some(Config::default())).unwrap())
}

/// A frame that asks who has the gateway's address, with the header that drivers put in front.
fn arp(gso: u8) -> Vec<u8> {
    let mut frame = vec![0, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&[0xff; 6]);
    frame.extend_from_slice(&GUEST_MAC);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&GUEST_MAC);
    frame.extend_from_slice(&GUEST_V4.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&GATEWAY_V4.octets());
    frame
}

fn transmit(driver: &mut Driver<Net>, frame: &[u8]) {
    driver.offer(1, &[frame], &[]).unwrap();
    driver.kick(1);
    wait(driver, 1, 1);
}

/// Waits for `count` buffers of a queue.
fn wait(driver: &mut Driver<Net>, queue: usize, count: usize) -> Vec<Used> {
    let mut all = Vec::new();
    loop {
        let edges = driver.line.edges();
        all.extend(driver.used(queue));
        all.extend(driver.used(queue));
        if all.len() >= count {
            return all;
        }
        assert!(driver.line.wait_beyond(edges), "nothing came");
    }
}

#[test]
fn the_configuration_names_address_status_and_mtu() {
    let up = Driver::started(device());
    let mut expected = GUEST_MAC.to_vec();
    expected.extend_from_slice(&[1, 0, 1, 0]);
    expected.extend_from_slice(&(MTU as u16).to_le_bytes());
    assert_eq!(up.config(0, 12), expected);
    let down = Driver::started(Arc::new(Net::new(None).unwrap()));
    assert_eq!(down.config(6, 2), [0, 0], "no carrier");
}

#[test]
fn a_frame_is_answered_into_one_buffer_or_several() {
    let mut driver = Driver::started(device());
    driver.offer(0, &[], &[2000]).unwrap();
    transmit(&mut driver, &arp(0));
    let used = wait(&mut driver, 0, 1);
    assert_eq!((used[0].len, &used[0].data[10..12]), (12 + 42, &[1, 0][..]));
    let whole = used[0].data[12..54].to_vec();
    for _ in 0..3 {
        driver.offer(0, &[], &[20]).unwrap();
    }
    transmit(&mut driver, &arp(0));
    let used = wait(&mut driver, 0, 3);
    let joined: Vec<u8> = used.iter().flat_map(|u| u.data[..u.len as usize].to_vec()).collect();
    assert_eq!((&joined[10..12], &joined[12..]), (&[3, 0][..], &whole[..]));
}

#[test]
fn a_frame_waits_for_buffers() {
    let mut driver = Driver::started(device());
    transmit(&mut driver, &arp(0));
    driver.offer(0, &[], &[20]).unwrap();
    driver.kick(0);
    for _ in 0..2 {
        driver.offer(0, &[], &[20]).unwrap();
    }
    driver.kick(0);
    assert_eq!(wait(&mut driver, 0, 3).iter().map(|u| u.len).sum::<u32>(), 54);
}

/// A frame that waits for more than the buffers that are there keeps nothing else: the one before it is told of.
#[test]
fn too_few_buffers_for_a_frame_hold_up_neither_the_frame_before_nor_the_device() {
    let mut driver = Driver::started(device());
    for size in [2000, 20, 20] {
        driver.offer(0, &[], &[size]).unwrap();
    }
    for _ in 0..2 {
        driver.offer(1, &[&arp(0)], &[]).unwrap();
    }
    driver.kick(1);
    assert_eq!(wait(&mut driver, 0, 1)[0].len, 54);
    wait(&mut driver, 1, 2);
    driver.offer(0, &[], &[20]).unwrap();
    driver.kick(0);
    assert_eq!(wait(&mut driver, 0, 3).iter().map(|u| u.len).sum::<u32>(), 54);
}

/// A ring whose buffers all together are too small for a frame loses it, and takes the next that fits.
#[test]
fn a_frame_that_fits_into_no_ring_is_lost() {
    let mut driver = Driver::started(device());
    let ring = 256;
    for _ in 0..ring {
        driver.offer(0, &[], &[0]).unwrap();
    }
    transmit(&mut driver, &arp(0));
    assert!(wait(&mut driver, 0, ring).iter().all(|u| u.len == 0));
    driver.offer(0, &[], &[2000]).unwrap();
    transmit(&mut driver, &arp(0));
    assert_eq!(wait(&mut driver, 0, 1)[0].len, 54);
}

#[test]
fn what_was_not_offered_is_not_carried() {
    let mut driver = Driver::started(device());
    for _ in 0..2 {
        driver.offer(0, &[], &[2000]).unwrap();
    }
    // A segment to be cut, a header cut short, a frame that no MTU allows: taken, and lost.
    transmit(&mut driver, &arp(1));
    transmit(&mut driver, &arp(0)[..8]);
    transmit(&mut driver, &vec![0; MTU + 100]);
    transmit(&mut driver, &arp(0));
    assert_eq!(wait(&mut driver, 0, 1).len(), 1);
}

#[test]
fn a_restored_device_answers_and_a_foreign_state_is_refused() {
    let mut driver = Driver::started(device());
    driver.offer(0, &[], &[2000]).unwrap();
    driver.transport.pause();
    // Sent while the machine stands: not lost.
    driver.offer(1, &[&arp(0)], &[]).unwrap();
    let state = driver.transport.save();
    let mut other = Driver::in_memory(driver.memory.clone(), device());
    other.transport.restore(&state).unwrap();
    other.adopt(&driver);
    other.transport.resume();
    wait(&mut other, 1, 1);
    assert_eq!(wait(&mut other, 0, 1)[0].len, 54);
    let newer = virtio::VirtioState { device: NetState { version: 2 }, ..state };
    assert!(other.transport.restore(&newer).is_err());
}

/// A TCP segment that asks for a connection to the gateway's port 9, from this hardware address.
fn syn(from: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend_from_slice(&netstack::GATEWAY_MAC);
    frame.extend_from_slice(&from);
    // IPv4 (RFC 791): 40 bytes, TCP; the guest's checksums are not verified.
    frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
    frame.extend_from_slice(&GUEST_V4.octets());
    frame.extend_from_slice(&GATEWAY_V4.octets());
    // TCP (RFC 9293): ports 1234 and 9, SYN.
    frame.extend_from_slice(&[4, 210, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// A copy of a machine has another hardware address than the machine, and is answered at it.
#[test]
fn a_guest_is_answered_at_the_address_that_it_has() {
    let mut driver = Driver::started(device());
    for own in [GUEST_MAC, [2, 1, 2, 3, 4, 5], [2, 9, 8, 7, 6, 5]] {
        driver.offer(0, &[], &[2000]).unwrap();
        transmit(&mut driver, &syn(own));
        let used = wait(&mut driver, 0, 1);
        // A reset, behind the header: nobody may reach the gateway's ports.
        assert_eq!((&used[0].data[12..18], used[0].data[59]), (&own[..], 0x14));
    }
}
