//! A guest driver in miniature: drives a device through its registers and rings as Linux would,
//! or as no honest driver would. For tests, here and in other crates (feature `driver_mock`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bus::{BusDevice, CountingLine};
use guestmem::GuestMemory;

use crate::features::{self, desc, status};
use crate::{MmioTransport, VirtioDevice};

/// Guest-physical address where the mock puts its rings and buffers: RAM below is the test's.
pub const ARENA: u64 = 0x10_0000;
/// RAM that [`Driver::new`] makes.
pub const RAM: u64 = 16 << 20;

/// One queue as the driver sees it.
#[derive(Clone, Debug)]
pub struct DriverQueue {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Entries published.
    pub avail_index: u16,
    /// Entries of the used ring seen.
    pub used_index: u16,
    free: Vec<u16>,
    /// By head: descriptors of the chain and its writable buffers.
    out: Vec<Option<InFlight>>,
}

#[derive(Clone, Debug, Default)]
struct InFlight {
    descriptors: Vec<u16>,
    writable: Vec<(u64, u32)>,
    /// All buffers with their sizes.
    buffers: Vec<(u64, u32)>,
}

/// What the device gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    /// The used length that the device named.
    pub len: u32,
    /// The chain's writable buffers, whole, one after the other.
    pub data: Vec<u8>,
}

/// A driver bound to one device.
pub struct Driver<D: VirtioDevice> {
    pub memory: GuestMemory,
    pub transport: Arc<MmioTransport<D>>,
    pub line: Arc<CountingLine>,
    pub queues: Vec<DriverQueue>,
    next: u64,
    /// Buffers that came back, by size.
    free: HashMap<u32, Vec<u64>>,
}

impl<D: VirtioDevice> Driver<D> {
    /// A fresh machine of 16 MiB with `device` in it; nothing negotiated yet.
    pub fn new(device: Arc<D>) -> Self {
        Self::in_memory(GuestMemory::new(RAM).expect("RAM"), device)
    }

    /// The same in memory that exists: the other side of a restore.
    pub fn in_memory(memory: GuestMemory, device: Arc<D>) -> Self {
        let line = Arc::new(CountingLine::default());
        let transport = Arc::new(MmioTransport::new(memory.clone(), device, line.clone()));
        Self { memory, transport, line, queues: Vec::new(), next: ARENA, free: HashMap::new() }
    }

    /// A machine whose driver went through the whole negotiation with every feature offered.
    pub fn started(device: Arc<D>) -> Self {
        let mut driver = Self::new(device);
        driver.start(u64::MAX);
        driver
    }

    /// Goes on where `other` was: what a guest does that does not know it was restored.
    pub fn adopt<E: VirtioDevice>(&mut self, other: &Driver<E>) {
        self.queues = other.queues.clone();
        self.next = other.next;
        self.free = other.free.clone();
    }

    /// Reads a 32-bit register.
    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        let _ = self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub fn set(&self, offset: u64, value: u32) {
        let _ = self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads configuration space.
    pub fn config(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.transport.read(crate::transport::mmio::CONFIG + offset, &mut data).expect("config");
        data
    }

    /// Bytes of guest RAM that nobody else uses.
    pub fn alloc(&mut self, len: u64, align: u64) -> u64 {
        let at = self.next.next_multiple_of(align);
        self.next = at + len;
        assert!(self.next <= self.memory.size(), "the mock's arena is full");
        at
    }

    /// A buffer, from those that came back if one fits.
    fn buffer(&mut self, len: u32) -> (u64, u32) {
        let class = len.max(16).next_power_of_two();
        let back = self.free.get_mut(&class).and_then(Vec::pop);
        (back.unwrap_or_else(|| self.alloc(class.into(), 16)), class)
    }

    /// Features that the device offers.
    pub fn offered(&self) -> u64 {
        self.set(0x014, 0);
        let low = u64::from(self.get(0x010));
        self.set(0x014, 1);
        low | u64::from(self.get(0x010)) << 32
    }

    /// Resets, negotiates `wanted` of what is offered, sets up every queue at its largest size,
    /// and goes to DRIVER_OK.
    pub fn start(&mut self, wanted: u64) {
        self.negotiate(wanted);
        self.queues.clear();
        let mut index = 0;
        loop {
            self.set(0x030, index);
            let max = self.get(0x034);
            if max == 0 {
                break;
            }
            self.add_queue(index, max as u16);
            index += 1;
        }
        self.set(0x070, self.get(0x070) | status::DRIVER_OK);
        assert_eq!(self.get(0x070), 15, "the device did not come up");
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&mut self, wanted: u64) {
        assert_eq!((self.get(0), self.get(4)), (0x7472_6976, 2));
        self.set(0x070, 0);
        self.next = ARENA;
        self.free.clear();
        self.set(0x070, status::ACKNOWLEDGE);
        self.set(0x070, status::ACKNOWLEDGE | status::DRIVER);
        let accept = self.offered() & (wanted | features::VERSION_1);
        for half in 0..2 {
            self.set(0x024, half);
            self.set(0x020, (accept >> (32 * half)) as u32);
        }
        self.set(0x070, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_ne!(self.get(0x070) & status::FEATURES_OK, 0, "features refused");
    }

    fn add_queue(&mut self, index: u32, size: u16) {
        let n = u64::from(size);
        let queue = DriverQueue {
            size,
            desc: self.alloc(16 * n, 16),
            avail: self.alloc(6 + 2 * n, 2),
            used: self.alloc(6 + 8 * n, 4),
            avail_index: 0,
            used_index: 0,
            free: (0..size).rev().collect(),
            out: vec![None; size.into()],
        };
        self.memory.fill_zero(queue.desc, (self.next - queue.desc) as usize).expect("rings");
        self.place_queue(index, size, queue.desc, queue.avail, queue.used);
        assert_eq!(self.get(0x044), 1, "queue {index} refused");
        self.queues.push(queue);
    }

    /// Writes one queue's registers, whatever they say.
    pub fn place_queue(&self, index: u32, size: u16, desc: u64, avail: u64, used: u64) {
        self.set(0x030, index);
        self.set(0x038, size.into());
        for (register, at) in [(0x080, desc), (0x090, avail), (0x0a0, used)] {
            self.set(register, at as u32);
            self.set(register + 4, (at >> 32) as u32);
        }
        self.set(0x044, 1);
    }

    /// Writes one raw descriptor.
    pub fn write_desc(&self, queue: usize, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let at = self.queues[queue].desc + desc::SIZE * u64::from(index);
        self.write_desc_at(at, gpa, len, flags, next);
    }

    /// Writes one raw descriptor anywhere (indirect tables).
    pub fn write_desc_at(&self, at: u64, gpa: u64, len: u32, flags: u16, next: u16) {
        let raw = u128::from(gpa) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        self.memory.write_le(at, raw).expect("descriptor in RAM");
    }

    /// Publishes a head without any check.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let q = &mut self.queues[queue];
        let slot = u64::from(q.avail_index % q.size);
        self.memory.write_le(q.avail + 4 + 2 * slot, head).expect("avail ring");
        q.avail_index = q.avail_index.wrapping_add(1);
        self.memory.store_u16(q.avail + 2, q.avail_index).expect("avail index");
    }

    /// Makes a chain from bytes to read and room to write, and publishes it. `None` when the
    /// ring has no room.
    pub fn offer(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Option<u16> {
        let count = readable.len() + writable.len();
        if count == 0 || self.queues[queue].free.len() < count {
            return None;
        }
        let mut flight = InFlight::default();
        let mut buffers = Vec::new();
        for bytes in readable {
            let (gpa, class) = self.buffer(bytes.len() as u32);
            flight.buffers.push((gpa, class));
            self.memory.write(gpa, bytes).expect("buffer");
            buffers.push((gpa, bytes.len() as u32, 0));
        }
        for len in writable {
            let (gpa, class) = self.buffer(*len);
            flight.buffers.push((gpa, class));
            flight.writable.push((gpa, *len));
            buffers.push((gpa, *len, desc::WRITE));
        }
        let q = &mut self.queues[queue];
        flight.descriptors = (0..count).filter_map(|_| q.free.pop()).collect();
        let ids = flight.descriptors.clone();
        q.out[usize::from(ids[0])] = Some(flight);
        for (i, (gpa, len, flags)) in buffers.into_iter().enumerate() {
            let next = ids.get(i + 1).copied();
            let flags = flags | if next.is_some() { desc::NEXT } else { 0 };
            self.write_desc(queue, ids[i], gpa, len, flags, next.unwrap_or(0));
        }
        self.publish(queue, ids[0]);
        Some(ids[0])
    }

    /// Rings the bell.
    pub fn kick(&self, queue: usize) {
        self.set(0x050, queue as u32);
    }

    /// Takes everything from the used ring and acknowledges the interrupt; asks for the next one.
    pub fn used(&mut self, queue: usize) -> Vec<Used> {
        self.set(0x064, self.get(0x060));
        let q = &mut self.queues[queue];
        let end = self.memory.load_u16(q.used + 2).expect("used index");
        let mut all = Vec::new();
        while q.used_index != end {
            let at = q.used + 4 + 8 * u64::from(q.used_index % q.size);
            let head = self.memory.read_le::<u32>(at).expect("used ring") as u16;
            let len = self.memory.read_le::<u32>(at + 4).expect("used ring");
            q.used_index = q.used_index.wrapping_add(1);
            let flight = q.out.get_mut(usize::from(head)).and_then(Option::take).unwrap_or_default();
            let mut data = Vec::new();
            for (gpa, n) in flight.writable {
                let start = data.len();
                data.resize(start + n as usize, 0);
                self.memory.read(gpa, &mut data[start..]).expect("buffer");
            }
            for (gpa, class) in flight.buffers {
                self.free.entry(class).or_default().push(gpa);
            }
            q.free.extend(flight.descriptors);
            all.push(Used { head, len, data });
        }
        let event = q.avail + 4 + 2 * u64::from(q.size);
        self.memory.store_u16(event, q.used_index).expect("used event");
        // Whatever is used from here on interrupts: a caller that looks once more misses nothing.
        fence(Ordering::SeqCst);
        all
    }

    /// Offers one chain, kicks, and takes the answer.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Used {
        let head = self.offer(queue, readable, writable).expect("room in the ring");
        self.kick(queue);
        let mut used = self.used(queue);
        assert_eq!(used.len(), 1, "one answer to one request");
        let used = used.pop().expect("one answer");
        assert_eq!(used.head, head);
        used
    }
}
