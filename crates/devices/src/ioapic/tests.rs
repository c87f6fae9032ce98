//! The I/O APIC as Linux programs it.

use std::sync::{Arc, Mutex};

use bus::{BusDevice, IoError, Saved, lock};

use super::{IoApic, IoApicState, Message, MsiSink, PINS};

#[derive(Default)]
struct Wire {
    sent: Mutex<Vec<(u64, u32)>>,
    pins: Mutex<Vec<u8>>,
}

impl MsiSink for Wire {
    fn send(&self, pin: u8, message: Message) {
        lock(&self.sent).push((message.address, message.data));
        lock(&self.pins).push(pin);
    }
}

struct Bench {
    wire: Arc<Wire>,
    apic: Arc<IoApic>,
}

impl Bench {
    fn new() -> Self {
        let wire = Arc::new(Wire::default());
        Self { apic: IoApic::new(wire.clone()), wire }
    }
    fn set(&self, register: u32, value: u32) {
        self.apic.write(0, &register.to_le_bytes()).unwrap();
        self.apic.write(0x10, &value.to_le_bytes()).unwrap();
    }
    fn get(&self, register: u32) -> u32 {
        self.apic.write(0, &register.to_le_bytes()).unwrap();
        let mut data = [0; 4];
        self.apic.read(0x10, &mut data).unwrap();
        u32::from_le_bytes(data)
    }
    fn entry(&self, pin: u32, value: u64) {
        self.set(0x11 + 2 * pin, (value >> 32) as u32);
        self.set(0x10 + 2 * pin, value as u32);
    }
    fn sent(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut lock(&self.wire.sent))
    }
}

#[test]
fn it_says_what_it_is() {
    let b = Bench::new();
    assert_eq!(b.get(1), 0x0017_0020);
    b.set(0, 0xff00_0000);
    assert_eq!(b.get(0), 0x0f00_0000);
    assert_eq!(b.get(0x10), 0x1_0000, "masked");
    b.set(0x10, u32::MAX);
    b.set(0x11, u32::MAX);
    assert_eq!((b.get(0x10), b.get(0x11)), (0x0001_afff, 0xffff_0000));
    b.set(0x40, 7);
    assert_eq!((b.get(0x40), b.get(0x08)), (0, 0), "nothing there");
}

#[test]
fn an_edge_becomes_a_message() {
    let b = Bench::new();
    b.entry(5, 3 << 56 | 0x31);
    b.apic.line(5).pulse();
    b.apic.line(5).pulse();
    assert_eq!(b.sent(), [(0xfee0_3000, 0x31); 2]);
    let line = b.apic.line(5);
    line.set_level(true);
    line.set_level(true);
    assert_eq!(b.sent().len(), 1, "only rising edges");
    // Logical, lowest priority, extended destination.
    b.entry(6, 0x12 << 56 | 0x7f << 49 | 1 << 11 | 1 << 8 | 0x44);
    b.apic.line(6).pulse();
    assert_eq!(b.sent(), [(0xfee1_2fe4, 0x144)]);
    b.apic.line(24).pulse();
    b.apic.line(255).pulse();
    assert_eq!(b.sent(), []);
}

#[test]
fn an_edge_on_a_masked_pin_is_sent_once_when_unmasked() {
    let b = Bench::new();
    b.apic.line(7).pulse();
    b.apic.line(7).pulse();
    assert_eq!(b.sent(), []);
    b.entry(7, 0x40);
    assert_eq!(b.sent(), [(0xfee0_0000, 0x40)]);
    b.entry(7, 0x1_0040);
    b.entry(7, 0x40);
    assert_eq!(b.sent(), []);
}

#[test]
fn a_level_is_sent_again_until_it_falls() {
    let b = Bench::new();
    b.entry(9, 1 << 15 | 0x50);
    let line = b.apic.line(9);
    line.set_level(true);
    line.set_level(true);
    assert_eq!(b.sent(), [(0xfee0_0000, 0xc050)]);
    assert_eq!(b.get(0x22), 0xc050, "remote IRR");
    b.apic.end_of_interrupt(0x51);
    assert_eq!(b.sent(), [], "another vector");
    b.apic.end_of_interrupt(0x50);
    assert_eq!(b.sent().len(), 1, "still high");
    line.set_level(false);
    b.apic.write(0x40, &[0x50]).unwrap();
    assert_eq!((b.sent(), b.get(0x22)), (vec![], 0x8050));
    // Masked while high, unmasked: sent. Switched to edge and back: acknowledged the old way.
    b.entry(9, 1 << 15 | 1 << 16 | 0x50);
    line.set_level(true);
    b.entry(9, 1 << 15 | 0x50);
    assert_eq!(b.sent().len(), 1);
    b.entry(9, 1 << 16 | 0x50);
    b.entry(9, 1 << 15 | 0x50);
    assert_eq!(b.sent().len(), 1);
}

#[test]
fn messages_say_their_pin() {
    let b = Bench::new();
    b.set(0x10, 0x33);
    b.set(0x16, 0x34);
    b.apic.line(3).pulse();
    b.apic.line(0).pulse();
    b.apic.line(99).pulse();
    assert_eq!(*lock(&b.wire.pins), [3, 0]);
}

#[test]
fn odd_accesses_are_refused() {
    let b = Bench::new();
    assert_eq!(b.apic.read(0x10, &mut [0; 1]), Err(IoError::Width { offset: 0x10, len: 1 }));
    assert_eq!(b.apic.write(0x10, &[0; 1]), Err(IoError::Width { offset: 0x10, len: 1 }));
    assert_eq!(b.apic.write(0, &[0; 8]), Err(IoError::Width { offset: 0, len: 8 }));
    assert_eq!(b.apic.read(0x40, &mut [0; 4]), Err(IoError::Direction { offset: 0x40 }));
    assert_eq!(b.apic.read(0x20, &mut [0; 4]), Err(IoError::NoRegister { offset: 0x20 }));
    assert_eq!(b.apic.write(0x20, &[0; 4]), Err(IoError::NoRegister { offset: 0x20 }));
}

#[test]
fn a_restored_controller_goes_on() {
    let b = Bench::new();
    b.entry(9, 1 << 15 | 0x50);
    b.apic.line(9).set_level(true);
    b.apic.line(3).pulse();
    let state = b.apic.save();
    let c = Bench::new();
    c.apic.restore(&state).unwrap();
    assert_eq!((c.apic.save(), c.sent()), (state.clone(), vec![]));
    c.apic.end_of_interrupt(0x50);
    c.entry(3, 0x41);
    assert_eq!(c.sent(), [(0xfee0_0000, 0xc050), (0xfee0_0000, 0x41)]);
    let entries = |n| vec![0; n];
    for bad in [
        IoApicState { version: 2, ..state.clone() },
        IoApicState { entries: entries(23), ..state.clone() },
        IoApicState { entries: entries(1 << 20), ..state.clone() },
        IoApicState { entries: vec![1 << 12; PINS], ..state.clone() },
        IoApicState { levels: 1 << 24, ..state.clone() },
        IoApicState { edges: u32::MAX, ..state.clone() },
        IoApicState { id: 16, ..state.clone() },
    ] {
        assert!(c.apic.restore(&bad).is_err());
    }
}
