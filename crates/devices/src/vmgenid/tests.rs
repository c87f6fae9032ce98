//! Events and the identifier.

use std::sync::Arc;

use bus::{BusDevice, CountingLine, Saved};
use guestmem::GuestMemory;

use super::{Events, Ged, GedState, VmGenId};

fn ged() -> (Arc<Ged>, Arc<CountingLine>) {
    let line = Arc::new(CountingLine::default());
    (Arc::new(Ged::new(line.clone())), line)
}

fn read<const N: usize>(ged: &Ged, offset: u64) -> [u8; N] {
    let mut data = [0xee; N];
    ged.read(offset, &mut data).unwrap();
    data
}

#[test]
fn a_new_identifier_is_written_and_told() {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let (ged, line) = ged();
    let id = VmGenId::new(memory.clone(), 0xf_f000, ged.clone());
    id.set([7; 16]).unwrap();
    assert_eq!((line.edges(), memory.read_le::<u128>(0xf_f000)), (0, Ok(u128::from_le_bytes([7; 16]))));
    let (a, b) = (id.renew().unwrap(), id.renew().unwrap());
    assert!(a != b && line.edges() == 2);
    assert_eq!(memory.read_le::<u128>(0xf_f000), Ok(u128::from_le_bytes(b)));
    assert_eq!(read(&ged, 0), [1, 0, 0, 0]);
    assert!(VmGenId::new(memory, 1 << 20, ged).renew().is_err());
}

#[test]
fn reading_takes_the_events() {
    let (ged, line) = ged();
    ged.raise(Events::GENERATION | Events::POWER_BUTTON | 0x80);
    assert_eq!(read(&ged, 4), [0; 4], "elsewhere nothing is taken");
    assert_eq!(read(&ged, 0), [3]);
    assert_eq!(read(&ged, 0), [0; 2]);
    ged.raise(Events::POWER_BUTTON);
    assert_eq!(read(&ged, 0), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read(&ged, 0), [0; 4]);
    assert_eq!(line.edges(), 2);
    assert!(ged.write(0, &[0; 4]).is_err());
}

#[test]
fn unread_events_travel() {
    let (a, _) = ged();
    a.raise(Events::GENERATION);
    let state = a.save();
    let (b, _) = ged();
    b.restore(&state).unwrap();
    assert_eq!(read(&b, 0), [1]);
    assert!(b.restore(&GedState { version: 3, ..state.clone() }).is_err());
    assert!(b.restore(&GedState { pending: 4, ..state }).is_err());
}
