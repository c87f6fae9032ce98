//! Power off and reset.

use std::sync::{Arc, Mutex};

use bus::{BusDevice, IoError, lock};

use super::{Power, PowerEvent, RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS, SLP_TYP_S5};

#[test]
fn the_guest_powers_off_and_resets() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = events.clone();
    let power = Power::new(move |event| lock(&log).push(event));
    for (offset, value) in
        [(SLEEP_STATUS, 0x80), (SLEEP_CONTROL, 1 << 5), (SLEEP_CONTROL, SLP_TYP_S5 << 2), (RESET, 0)]
    {
        power.write(offset, &[value]).unwrap();
    }
    assert_eq!(*lock(&events), []);
    power.write(SLEEP_CONTROL, &[1 << 5 | SLP_TYP_S5 << 2]).unwrap();
    power.write(RESET, &[RESET_VALUE]).unwrap();
    assert_eq!(*lock(&events), [PowerEvent::Shutdown, PowerEvent::Reset]);
}

#[test]
fn reads_are_zero_and_odd_accesses_are_refused() {
    let power = Power::new(|_| ());
    let mut data = [9];
    power.read(SLEEP_STATUS, &mut data).unwrap();
    assert_eq!(data, [0]);
    assert_eq!(power.read(3, &mut data), Err(IoError::NoRegister { offset: 3 }));
    assert_eq!(power.write(3, &data), Err(IoError::NoRegister { offset: 3 }));
    assert_eq!(power.write(0, &[0; 4]), Err(IoError::Width { offset: 0, len: 4 }));
}
