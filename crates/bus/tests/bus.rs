//! The bus through its public surface.

use std::sync::Arc;

use bus::{Bus, BusDevice, BusStats, CountingLine, InsertError, IoError, IoResult, IrqLine};

/// Answers with its tag; has registers below 8 only.
struct Tag(u8);

impl BusDevice for Tag {
    fn read(&self, offset: u64, data: &mut [u8]) -> IoResult {
        if offset >= 8 {
            return Err(IoError::NoRegister { offset });
        }
        data.fill(self.0 + offset as u8);
        Ok(())
    }
    fn write(&self, offset: u64, _data: &[u8]) -> IoResult {
        Err(IoError::Direction { offset })
    }
}

fn bus() -> Bus {
    let mut bus = Bus::new();
    bus.insert(0x2000, 0x10, "b", Arc::new(Tag(0x20))).unwrap();
    bus.insert(0x1000, 0x10, "a", Arc::new(Tag(0x10))).unwrap();
    bus.insert(u64::MAX - 3, 4, "top", Arc::new(Tag(0x30))).unwrap();
    bus
}

fn read(bus: &Bus, address: u64) -> u32 {
    let mut data = [0; 4];
    bus.read(address, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn an_access_reaches_the_device_with_its_offset() {
    let bus = bus();
    assert_eq!(read(&bus, 0x1000), 0x1010_1010);
    assert_eq!(read(&bus, 0x2004), 0x2424_2424);
    assert_eq!(read(&bus, u64::MAX - 3), 0x3030_3030);
    assert_eq!(bus.stats(), BusStats::default());
}

#[test]
fn unknown_straddling_and_refused_reads_are_all_ones_and_counted() {
    let bus = bus();
    for address in [0, 0xfff, 0x100d, 0x1010, 0x1fff, u64::MAX - 2] {
        assert_eq!(read(&bus, address), u32::MAX, "{address:#x}");
    }
    assert_eq!(read(&bus, 0x1008), u32::MAX);
    bus.write(0x1000, &[1]);
    bus.write(0x3000, &[1]);
    bus.read(0x1000, &mut []);
    assert_eq!(bus.stats(), BusStats { unknown: 8, refused: 2 });
}

#[test]
fn overlapping_and_impossible_ranges_are_refused() {
    let mut bus = bus();
    for (base, len) in [(0x1000, 1), (0xff8, 9), (0x100f, 0x100), (0x0, 0x10000), (0x1ff1, 0x10)] {
        let refused = bus.insert(base, len, "x", Arc::new(Tag(0)));
        assert!(matches!(refused, Err(InsertError::Overlap { .. })), "{base:#x}+{len:#x}");
    }
    for (base, len) in [(0x5000, 0), (u64::MAX, 2)] {
        let refused = bus.insert(base, len, "x", Arc::new(Tag(0)));
        assert!(matches!(refused, Err(InsertError::BadRange { .. })));
    }
    bus.insert(0x1010, 0xff0, "fits exactly", Arc::new(Tag(0))).unwrap();
    let names: Vec<_> = bus.ranges().map(|r| r.2.to_owned()).collect();
    assert_eq!(names, ["a", "fits exactly", "b", "top"]);
}

#[test]
fn a_counting_line_sees_rising_edges_only() {
    let line = CountingLine::default();
    line.set_level(true);
    line.set_level(true);
    line.set_level(false);
    line.pulse();
    assert_eq!((line.edges(), line.level()), (2, false));
}
