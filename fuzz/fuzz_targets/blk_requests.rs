//! Any chains of a hostile driver to a virtio disk: nothing panics, no request reaches the disk beyond its end, and
//! each chain comes back once.
//!
//! Input: descriptors (place in guest memory divided by 16, length, flags, next), the heads that are published, bytes
//! that lie in guest memory where descriptors mostly point, and whether the disk may be written.
#![no_main]

use std::io;
use std::sync::{Arc, Mutex};

use devices::blk::Blk;
use disk::Disk;
use libfuzzer_sys::fuzz_target;
use virtio::driver_mock::{ARENA, Driver};

const SIZE: usize = 64 * 512;

struct Small(Mutex<Vec<u8>>, bool);

impl Small {
    fn with<R>(&self, offset: u64, len: u64, does: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut bytes = self.0.lock().expect("the disk");
        does(&mut bytes[offset as usize..(offset + len) as usize])
    }
}

impl Disk for Small {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn is_read_only(&self) -> bool {
        self.1
    }
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.with(offset, to.len() as u64, |bytes| to.copy_from_slice(bytes));
        Ok(())
    }
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        assert!(!self.1, "a write to a disk that is read-only");
        self.with(offset, from.len() as u64, |bytes| bytes.copy_from_slice(from));
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        assert!(!self.1, "a write to a disk that is read-only");
        self.with(offset, len, |bytes| bytes.fill(0));
        Ok(())
    }
}

fuzz_target!(|input: (Vec<(u32, u32, u8, u8)>, Vec<u8>, Vec<u8>, bool)| {
    let (descriptors, heads, data, read_only) = input;
    let disk = Arc::new(Small(Mutex::new(vec![7; SIZE]), read_only));
    let mut driver = Driver::started(Arc::new(Blk::new(disk, "fuzz")));
    // Where the mock's own allocations begin, the descriptors' small addresses too.
    let place = ARENA + (1 << 20);
    let _ = driver.memory.write(place, &data[..data.len().min(1 << 16)]);
    for (index, (at, len, flags, next)) in (0u16..).zip(descriptors.into_iter().take(64)) {
        // Half of them where the data is, half anywhere, the last of them outside the memory.
        let gpa = match at & 1 {
            0 => place + u64::from(at >> 1 & 0xfff0),
            _ => u64::from(at) << 4,
        };
        let len = if len & 3 == 0 { len >> 2 } else { len >> 2 & 0x1fff };
        driver.write_desc(0, index, gpa, len, u16::from(flags & 7), u16::from(next & 63));
    }
    let published = heads.len().min(32);
    for head in &heads[..published] {
        driver.publish(0, u16::from(head & 63));
    }
    driver.kick(0);
    let queue = &driver.queues[0];
    let used = driver.memory.load_u16(queue.used + 2).expect("the used index");
    assert!(usize::from(used) <= published);
});
