//! The UART as Linux's 8250 driver uses it.

use std::sync::Arc;

use bus::{BusDevice, CountingLine, IoError, Saved};

use super::{Serial, SerialState};
use crate::Tail;

struct Port {
    serial: Serial,
    line: Arc<CountingLine>,
    out: Tail,
}

impl Port {
    fn new() -> Self {
        let line = Arc::new(CountingLine::default());
        let out = Tail::new(8);
        Self { serial: Serial::new(line.clone(), Box::new(out.clone())), line, out }
    }
    fn get(&self, register: u64) -> u8 {
        let mut data = [0];
        self.serial.read(register, &mut data).unwrap();
        data[0]
    }
    fn set(&self, register: u64, value: u8) {
        self.serial.write(register, &[value]).unwrap();
    }
}

#[test]
fn a_driver_finds_a_16550a() {
    let p = Port::new();
    // Interrupt enable holds four bits; loopback brings the modem lines back.
    p.set(1, 0xff);
    assert_eq!(p.get(1), 0x0f);
    p.set(1, 0);
    p.set(4, 0x1a);
    assert_eq!(p.get(6) & 0xf0, 0x90);
    p.set(0, b'x');
    assert_eq!((p.get(5) & 1, p.get(0)), (1, b'x'), "loopback of data");
    p.set(4, 0x0b);
    assert_eq!(p.get(6) & 0xf0, 0xb0);
    assert_eq!(p.get(2), 0x01);
    p.set(2, 1);
    assert_eq!(p.get(2), 0xc1, "FIFOs work");
    p.set(7, 0x5a);
    assert_eq!(p.get(7), 0x5a);
    p.set(3, 0x80);
    p.set(0, 0x34);
    p.set(1, 0x12);
    assert_eq!((p.get(0), p.get(1)), (0x34, 0x12));
    p.set(3, 3);
    assert_eq!((p.get(1), p.get(3)), (0, 3), "the divisor is not the interrupt enable");
    assert_eq!(p.out.contents(), b"");
}

#[test]
fn output_is_bounded_and_polling_works() {
    let p = Port::new();
    for b in b"0123456789" {
        assert_eq!(p.get(5) & 0x60, 0x60);
        p.set(0, *b);
    }
    assert_eq!((p.out.contents(), p.out.dropped()), (b"23456789".to_vec(), 2));
    assert_eq!(p.line.edges(), 0);
}

#[test]
fn the_transmitter_interrupts_until_it_is_asked() {
    let p = Port::new();
    p.set(1, 2);
    assert_eq!(p.line.edges(), 1, "empty already");
    assert_eq!(p.get(2), 0x02);
    assert!(!p.line.level());
    assert_eq!(p.get(2), 0x01, "reading took it");
    p.set(0, b'a');
    p.set(0, b'b');
    assert_eq!(p.line.edges(), 2);
    p.set(1, 0);
    assert!(!p.line.level());
    p.set(1, 2);
    assert_eq!((p.line.edges(), p.get(2)), (3, 0x02));
}

#[test]
fn input_waits_bounded_and_interrupts() {
    let p = Port::new();
    p.set(1, 3);
    p.get(2);
    assert_eq!(p.serial.input(b"hi"), 2);
    assert_eq!((p.line.level(), p.get(2)), (true, 0x04));
    assert_eq!((p.get(0), p.get(0), p.get(0)), (b'h', b'i', 0));
    assert!(!p.line.level());
    assert_eq!(p.serial.input(&[1; 5000]), 1024);
    assert_eq!(p.serial.input(&[1]), 0);
    p.set(2, 3);
    assert_eq!((p.get(5) & 1, p.line.level()), (0, false));
}

#[test]
fn wide_accesses_are_refused() {
    let p = Port::new();
    assert_eq!(p.serial.read(0, &mut [0; 2]), Err(IoError::Width { offset: 0, len: 2 }));
    assert_eq!(p.serial.write(0, b"ab"), Err(IoError::Width { offset: 0, len: 2 }));
}

#[test]
fn a_restored_port_is_the_same_port() {
    let p = Port::new();
    p.set(1, 3);
    p.set(3, 0x83);
    p.set(0, 9);
    p.set(3, 3);
    p.serial.input(b"abc");
    let state = p.serial.save();
    let q = Port::new();
    q.serial.restore(&state).unwrap();
    assert_eq!(q.serial.save(), state);
    assert!(q.line.level());
    assert_eq!((q.get(2), q.get(0)), (0x04, b'a'));
    for bad in [
        SerialState { version: 0, ..state.clone() },
        SerialState { version: 2, ..state.clone() },
        SerialState { ier: 0x10, ..state.clone() },
        SerialState { mcr: 0xff, ..state.clone() },
        SerialState { input: vec![0; 1025], ..state.clone() },
    ] {
        assert!(Port::new().serial.restore(&bad).is_err());
    }
}
