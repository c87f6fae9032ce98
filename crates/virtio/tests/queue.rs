//! Queues and transport against honest and hostile drivers.

use std::sync::{Arc, Mutex};

use bus::{BusDevice, IoError, RestoreError, Saved, lock};
use guestmem::GuestMemory;
use proptest::prelude::*;
use virtio::driver_mock::{Driver, RAM};
use virtio::features::{self, desc, status};
use virtio::{Activation, MAX_CHAIN, VirtioDevice};

/// Answers each request with its bytes reversed; remembers what happened.
#[derive(Default)]
struct Echo {
    world: Mutex<Option<Activation>>,
    config: Mutex<Vec<u8>>,
    resets: Mutex<u32>,
}

impl VirtioDevice for Echo {
    type State = u32;
    fn kind(&self) -> u32 {
        0x4242
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 4]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 {
            data[0] = 7;
        }
    }
    fn write_config(&self, _offset: u64, data: &[u8]) {
        lock(&self.config).extend_from_slice(data);
    }
    fn activate(&self, world: Activation) {
        *lock(&self.world) = Some(world);
    }
    fn notify(&self, queue: usize) {
        let Some(world) = lock(&self.world).clone() else { return };
        world.drain(queue, |chain| {
            let mut reader = chain.readable(&world.memory);
            let mut bytes = vec![0; reader.remaining().min(1 << 20) as usize];
            reader.read_exact(&mut bytes).unwrap();
            bytes.reverse();
            let mut writer = chain.writable(&world.memory);
            writer.write(&bytes).unwrap() as u32
        });
    }
    fn reset(&self) {
        *lock(&self.world) = None;
        *lock(&self.resets) += 1;
    }
    fn save(&self) -> u32 {
        99
    }
    fn restore(&self, state: &u32) -> Result<(), RestoreError> {
        if *state == 99 { Ok(()) } else { Err(RestoreError::invalid("echo", "not 99")) }
    }
}

fn echo() -> Driver<Echo> {
    Driver::started(Arc::new(Echo::default()))
}

#[test]
fn chains_are_gathered_and_scattered() {
    let mut driver = echo();
    let used = driver.request(0, &[b"ab", b"", b"cde"], &[1, 0, 9]);
    assert_eq!((used.len, &used.data[..5]), (5, &b"edcba"[..]));
    assert_eq!(driver.line.edges(), 1);
    assert_eq!(driver.get(0x060), 0, "acknowledged");
}

#[test]
fn rings_wrap_many_times() {
    for wanted in [u64::MAX, !features::EVENT_IDX] {
        let mut driver = Driver::new(Arc::new(Echo::default()));
        driver.start(wanted);
        for i in 0..70_000u32 {
            let used = driver.request(1, &[&i.to_le_bytes()], &[4]);
            assert_eq!(used.data, i.to_be_bytes());
        }
        assert_eq!(driver.line.edges(), 70_000);
    }
}

#[test]
fn a_batch_gives_one_interrupt_and_only_when_wanted() {
    let mut driver = echo();
    for _ in 0..5 {
        driver.offer(0, &[b"x"], &[1]).unwrap();
    }
    driver.kick(0);
    assert_eq!(driver.line.edges(), 1);
    assert_eq!(driver.used(0).len(), 5);
    // The driver asks to hear only of the third from here.
    let event = driver.queues[0].avail + 4 + 2 * 16;
    driver.memory.store_u16(event, 7).unwrap();
    for edges in [1, 1, 2] {
        driver.offer(0, &[b"x"], &[1]).unwrap();
        driver.kick(0);
        assert_eq!(driver.line.edges(), edges);
    }
    // Without event indexes: a flag.
    driver.start(!features::EVENT_IDX);
    driver.memory.store_u16(driver.queues[0].avail, 1).unwrap();
    driver.offer(0, &[b"x"], &[1]).unwrap();
    driver.kick(0);
    assert_eq!((driver.line.edges(), driver.used(0).len()), (2, 1));
}

#[test]
fn indirect_tables_may_follow_direct_descriptors() {
    let mut driver = echo();
    let table = driver.alloc(48, 16);
    let data = driver.alloc(64, 1);
    driver.memory.write(data, b"hello world").unwrap();
    driver.write_desc_at(table, data + 6, 5, desc::NEXT, 2);
    driver.write_desc_at(table + 32, data + 32, 20, desc::WRITE, 0);
    driver.write_desc(0, 0, data, 6, desc::NEXT, 1);
    driver.write_desc(0, 1, table, 48, desc::INDIRECT, 0);
    driver.publish(0, 0);
    driver.kick(0);
    assert_eq!(driver.used(0)[0].len, 11);
    let mut answer = [0; 11];
    driver.memory.read(data + 32, &mut answer).unwrap();
    assert_eq!(&answer, b"dlrow olleh");
}

/// Each breaks one rule with descriptors 0.. of queue 0; the queue must stop, the status say so.
#[test]
fn broken_chains_stop_the_queue_and_tell_the_driver() {
    type Break = fn(&mut Driver<Echo>);
    let cases: &[(&str, Break)] = &[
        ("loop", |d| d.write_desc(0, 0, 0x1000, 1, desc::NEXT, 0)),
        ("descriptor out of table", |d| d.write_desc(0, 0, 0x1000, 1, desc::NEXT, 16)),
        ("buffer outside RAM", |d| d.write_desc(0, 0, RAM - 1, 2, 0, 0)),
        ("buffer wraps", |d| d.write_desc(0, 0, u64::MAX, 2, 0, 0)),
        ("buffer in the hole", |d| d.write_desc(0, 0, 0xc000_0000, 2, 0, 0)),
        ("read after write", |d| {
            d.write_desc(0, 0, 0x1000, 1, desc::NEXT | desc::WRITE, 1);
            d.write_desc(0, 1, 0x1000, 1, 0, 0);
        }),
        ("indirect of odd length", |d| d.write_desc(0, 0, 0x1000, 17, desc::INDIRECT, 0)),
        ("indirect of no length", |d| d.write_desc(0, 0, 0x1000, 0, desc::INDIRECT, 0)),
        ("indirect outside RAM", |d| d.write_desc(0, 0, RAM - 8, 16, desc::INDIRECT, 0)),
        ("indirect wraps", |d| {
            d.write_desc_at(0x1000, 1, 1, desc::NEXT, 1);
            d.write_desc(0, 0, u64::MAX - 15, 32, desc::INDIRECT, 0)
        }),
        ("indirect and next", |d| d.write_desc(0, 0, 0x1000, 16, desc::INDIRECT | desc::NEXT, 1)),
        ("indirect in indirect", |d| {
            d.write_desc_at(0x1000, 0x2000, 16, desc::INDIRECT, 0);
            d.write_desc(0, 0, 0x1000, 16, desc::INDIRECT, 0);
        }),
        ("endless indirect", |d| {
            let count = MAX_CHAIN as u64 + 1;
            for i in 0..count {
                d.write_desc_at(0x1000 + 16 * i, 0, 1, desc::NEXT, i as u16 + 1);
            }
            d.write_desc(0, 0, 0x1000, count as u32 * 16, desc::INDIRECT, 0);
        }),
    ];
    for (name, break_it) in cases {
        let mut driver = echo();
        break_it(&mut driver);
        driver.publish(0, 0);
        driver.kick(0);
        assert_ne!(driver.get(0x070) & status::NEEDS_RESET, 0, "{name}");
        assert_eq!(driver.used(0), [], "{name}");
        driver.offer(0, &[b"x"], &[1]);
        driver.kick(0);
        assert_eq!(driver.used(0), [], "{name}: stopped for good");
        driver.start(u64::MAX);
        assert_eq!(driver.request(0, &[b"ok"], &[2]).data, b"ko", "{name}: a reset heals");
    }
}

#[test]
fn an_available_index_too_far_ahead_stops_the_queue() {
    let driver = echo();
    driver.memory.store_u16(driver.queues[0].avail + 2, 17).unwrap();
    driver.kick(0);
    assert_ne!(driver.get(0x070) & status::NEEDS_RESET, 0);
}

#[test]
fn a_queue_cannot_be_moved_or_resized_once_ready() {
    let mut driver = echo();
    driver.place_queue(0, 8, 0x1000, 0x2000, 0x3000);
    assert_eq!(driver.request(0, &[b"still"], &[5]).data, b"llits");
    let state = driver.transport.save().transport;
    assert_eq!((state.queues[0].size, state.queues[0].desc), (16, driver.queues[0].desc));
    // Not between QueueReady and DRIVER_OK either.
    driver.negotiate(u64::MAX);
    driver.place_queue(0, 8, 0x1000, 0x2000, 0x3000);
    driver.place_queue(0, 16, 0x4000, 0x5000, 0x6000);
    assert_eq!(driver.transport.save().transport.queues[0].desc, 0x1000);
    // Given up after DRIVER_OK, it stays closed.
    driver.set(0x070, 15);
    driver.set(0x044, 0);
    driver.place_queue(0, 16, 0x4000, 0x5000, 0x6000);
    assert_eq!(driver.get(0x044), 0);
    driver.kick(0);
}

#[test]
fn impossible_layouts_are_refused_at_queue_ready() {
    for (size, desc, avail, used) in [
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (32, 0x1000, 0x2000, 0x3000),
        (16, 0x1008, 0x2000, 0x3000),
        (16, 0x1000, 0x2001, 0x3000),
        (16, 0x1000, 0x2000, 0x3002),
        (16, RAM - 0x80, 0x2000, 0x3000),
        (16, 0x1000, RAM - 2, 0x3000),
        (16, 0x1000, 0x2000, u64::MAX - 3),
        (16, 0x1000, 0xffff_fffe, 0x3000),
    ] {
        let mut driver = Driver::new(Arc::new(Echo::default()));
        driver.negotiate(u64::MAX);
        driver.place_queue(0, size, desc, avail, used);
        assert_eq!(driver.get(0x044), 0, "{size} {desc:#x} {avail:#x} {used:#x}");
        assert_ne!(driver.get(0x070) & status::NEEDS_RESET, 0);
        driver.set(0x070, 15);
        driver.kick(0);
    }
}

#[test]
fn the_status_only_moves_forward() {
    let driver = Driver::new(Arc::new(Echo::default()));
    driver.set(0x070, status::DRIVER_OK | 3);
    assert_eq!(driver.get(0x070), 3, "no DRIVER_OK before FEATURES_OK");
    driver.set(0x070, 11);
    assert_eq!(driver.get(0x070), 3, "VERSION_1 is a must");
    driver.set(0x024, 1);
    driver.set(0x020, 1);
    driver.set(0x024, 0);
    driver.set(0x020, 2);
    driver.set(0x070, 11);
    assert_eq!(driver.get(0x070), 3, "not offered");
    driver.set(0x020, 1);
    driver.set(0x070, 11);
    assert_eq!(driver.get(0x070), 11);
    driver.set(0x020, 4);
    assert_eq!(driver.transport.save().transport.driver_features, features::VERSION_1 | 1);
    driver.set(0x070, 3);
    assert_eq!(driver.get(0x070), 11, "bits are not taken back");
    driver.kick(0);
    driver.set(0x070, 0);
    assert_eq!((driver.get(0x070), *lock(&driver.transport.device().resets)), (0, 1));
}

#[test]
fn registers_answer_as_the_standard_says() {
    let driver = Driver::new(Arc::new(Echo::default()));
    assert_eq!(driver.get(0x000).to_le_bytes(), *b"virt");
    assert_eq!((driver.get(0x004), driver.get(0x008)), (2, 0x4242));
    assert_eq!(driver.offered(), 0b101 | features::TRANSPORT);
    driver.set(0x030, 1);
    assert_eq!(driver.get(0x034), 4);
    driver.set(0x030, 2);
    assert_eq!(driver.get(0x034), 0, "no third queue");
    assert_eq!((driver.get(0x0b0), driver.get(0x0bc)), (u32::MAX, u32::MAX));
    assert_eq!(driver.config(0, 2), [7, 0]);
    assert_eq!(driver.config(0xe00, 4), [0; 4]);
    driver.transport.write(0x101, &[1, 2]).unwrap();
    assert_eq!(*lock(&driver.transport.device().config), [1, 2]);
    let mut byte = [0];
    assert_eq!(driver.transport.read(0, &mut byte), Err(IoError::Width { offset: 0, len: 1 }));
    assert_eq!(driver.transport.write(0, &[0; 4]), Err(IoError::Direction { offset: 0 }));
    assert_eq!(driver.transport.read(0x200 - 0x108, &mut [0; 4]), Err(IoError::NoRegister { offset: 0xf8 }));
}

#[test]
fn a_saved_transport_goes_on_where_it_was() {
    let mut driver = echo();
    driver.request(0, &[b"one"], &[3]);
    driver.offer(0, &[b"two"], &[3]).unwrap(); // offered, not kicked
    driver.transport.pause();
    let state = driver.transport.save();
    let mut other = Driver::in_memory(driver.memory.clone(), Arc::new(Echo::default()));
    other.transport.restore(&state).unwrap();
    assert_eq!(other.transport.save(), state);
    other.adopt(&driver);
    other.transport.resume();
    let used = other.used(0);
    assert_eq!((used.len(), &used[0].data[..]), (1, &b"owt"[..]));
    assert_eq!(other.request(0, &[b"three"], &[5]).data, b"eerht");
}

#[test]
fn an_interrupt_not_acknowledged_is_repeated_after_a_restore() {
    let mut driver = echo();
    driver.offer(0, &[b"x"], &[1]).unwrap();
    driver.kick(0);
    assert_eq!(driver.get(0x060), 1);
    let state = driver.transport.save();
    let other = Driver::in_memory(driver.memory.clone(), Arc::new(Echo::default()));
    other.transport.restore(&state).unwrap();
    assert_eq!(other.line.edges(), 0);
    other.transport.resume();
    assert_eq!((other.line.edges(), other.get(0x060)), (1, 1));
}

#[test]
fn hostile_states_are_refused_and_change_nothing() {
    let good = echo().transport.save();
    type Spoil = fn(&mut virtio::VirtioState<u32>);
    let cases: &[Spoil] = &[
        |s| s.transport.version = 2,
        |s| s.transport.version = 0,
        |s| s.transport.kind = 2,
        |s| s.transport.status |= 0x100,
        |s| s.transport.status &= !status::FEATURES_OK,
        |s| s.transport.driver_features |= 1 << 60,
        |s| s.transport.driver_features &= !features::VERSION_1,
        |s| s.transport.queues.truncate(1),
        |s| s.transport.queues.extend(s.transport.queues.clone()),
        |s| s.transport.queues[0].size = 0,
        |s| s.transport.queues[0].size = 32,
        |s| s.transport.queues[1].desc = u64::MAX,
        |s| s.transport.queues[1].driver = RAM,
        |s| s.transport.queues[1].device |= 1,
        |s| s.device = 1,
    ];
    for (i, spoil) in cases.iter().enumerate() {
        let driver = Driver::new(Arc::new(Echo::default()));
        let before = driver.transport.save();
        let mut state = good.clone();
        spoil(&mut state);
        assert!(driver.transport.restore(&state).is_err(), "case {i}");
        assert_eq!(driver.transport.save(), before, "case {i}");
    }
    let broken = {
        let mut state = good.clone();
        state.transport.status |= status::NEEDS_RESET;
        state
    };
    let driver = Driver::new(Arc::new(Echo::default()));
    driver.transport.restore(&broken).unwrap();
    driver.transport.resume();
    driver.kick(0);
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let gpa = prop_oneof![0..RAM, Just(RAM - 1), any::<u64>(), 0x1000..0x1100u64];
    let len = prop_oneof![0..64u32, 0..8192u32, any::<u32>(), Just(16), Just(160)];
    (gpa, len, prop_oneof![0..8u16, any::<u16>()], prop_oneof![0..18u16, any::<u16>()])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Random tables, direct and indirect: no panic, no hang, only our own memory touched.
    #[test]
    fn random_tables_are_survived(
        table in prop::collection::vec(descriptor(), 16),
        indirect in prop::collection::vec(descriptor(), 10),
        heads in prop::collection::vec(0..20u16, 1..16),
        event_idx: bool,
    ) {
        let mut driver = Driver::new(Arc::new(Echo::default()));
        driver.start(if event_idx { u64::MAX } else { !features::EVENT_IDX });
        for (i, d) in table.iter().enumerate() {
            driver.write_desc(0, i as u16, d.0, d.1, d.2, d.3);
        }
        for (i, d) in indirect.iter().enumerate() {
            driver.write_desc_at(0x1000 + 16 * i as u64, d.0, d.1, d.2, d.3);
        }
        for head in heads {
            driver.publish(0, head);
            driver.kick(0);
        }
        let state = driver.transport.save();
        let other = Driver::in_memory(GuestMemory::new(RAM).unwrap(), Arc::new(Echo::default()));
        other.transport.restore(&state).unwrap();
        other.transport.resume();
    }

    /// Random register writes: no panic, and a reset always brings the device back.
    #[test]
    fn random_registers_are_survived(writes in prop::collection::vec((0..0x50u64, any::<u32>(), 0..4u8), 1..100)) {
        let mut driver = Driver::new(Arc::new(Echo::default()));
        for (register, value, small) in writes {
            let value = if small == 0 { value } else { value & 0x1f };
            driver.set(register * 4, value);
            driver.get(register * 4);
        }
        driver.start(u64::MAX);
        prop_assert_eq!(driver.request(0, &[b"ok"], &[2]).data, b"ko");
    }
}
