//! The saved states as bytes: their layout is an ABI that released files hold us to, and what
//! comes back may be anything.

use std::sync::Arc;

use bus::{NoLine, Saved};
use devices::Tail;
use devices::balloon::{Balloon, BalloonState};
use devices::blk::{Blk, BlkState};
use devices::console::{Console, ConsoleState};
use devices::fs::{Fs, FsState};
use devices::ioapic::{IoApic, IoApicState};
use devices::rng::{Rng, RngState};
use devices::serial::{Serial, SerialState};
use devices::vmgenid::{Ged, GedState};
use devices::vsock::{Vsock, VsockState};
use disk::{DeltaMap, Extent, ExtentKind, SparseDisk};
use guestmem::GuestMemory;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use virtio::driver_mock::Driver;
use virtio::{MmioTransport, QueueState, TransportState, VirtioDevice, VirtioState};

fn transport() -> TransportState {
    TransportState {
        version: 1,
        kind: 2,
        status: 15,
        device_features_sel: 1,
        driver_features_sel: 0,
        driver_features: 0x1_3000_0000,
        queue_sel: 0,
        interrupt_status: 1,
        config_generation: 4,
        queues: vec![QueueState {
            size: 256,
            ready: true,
            desc: 0x10_0000,
            driver: 0x10_1000,
            device: 0x10_2000,
            next_avail: 300,
            next_used: 299,
            signalled: 298,
        }],
    }
}

/// The bytes of a state as hexadecimal digits; they must also come back as the same state.
fn bytes<S: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(state: &S) -> String {
    let bytes = postcard::to_stdvec(state).unwrap();
    assert_eq!(&postcard::from_bytes::<S>(&bytes).unwrap(), state);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A change here needs a new version number in the state concerned, and a reader of the old one.
#[test]
fn the_layout_of_version_1_is_pinned() {
    let input = vec![7, 8];
    let blk = VirtioState {
        transport: transport(),
        device: BlkState { version: 1, size: 1 << 20, read_only: true },
    };
    assert_eq!(bytes(&blk), "01020f010080808080130001040180020180804080a04080c040ac02ab02aa020180804001");
    assert_eq!(bytes(&RngState { version: 1 }), "01");
    assert_eq!(bytes(&BalloonState { version: 1, actual: 300 }), "01ac02");
    let console = ConsoleState { version: 1, columns: 80, rows: 25, input: input.clone() };
    assert_eq!(bytes(&console), "015019020708");
    let vsock =
        VsockState { version: 1, guest_cid: 3, connections: vec![(1024, 1 << 30)], next_port: (1 << 30) + 1 };
    assert_eq!(bytes(&vsock), "010301800880808080048180808004");
    let serial = SerialState {
        version: 1,
        ier: 3,
        fifo: true,
        lcr: 0x83,
        mcr: 11,
        scratch: 9,
        divisor: 0x1234,
        transmitter_pending: true,
        input,
    };
    assert_eq!(bytes(&serial), "010301830b09b42401020708");
    let ioapic = IoApicState {
        version: 1,
        select: 0x10,
        id: 2,
        levels: 3,
        edges: 4,
        entries: vec![0x1_0000, 1 << 56],
    };
    assert_eq!(bytes(&ioapic), "011002030402808004808080808080808001");
    assert_eq!(bytes(&GedState { version: 1, pending: 1 }), "0101");
    let idle =
        VirtioState { transport: transport(), device: FsState { version: 1, session: Default::default() } };
    assert!(bytes(&idle).ends_with("0100000000000000"), "{}", bytes(&idle));
    let extent = |first, kind| Extent { first, count: 2, kind };
    let map = DeltaMap {
        disk_size: 1 << 34,
        extents: vec![extent(5, ExtentKind::Data), extent(9, ExtentKind::Zero)],
    };
    assert_eq!(bytes(&map), "808080804002050200090201");
}

fn blk() -> Blk {
    let mut list = (1u64 << 20).to_le_bytes().to_vec();
    list.extend([0; 4]);
    Blk::new(Arc::new(SparseDisk::new(list).unwrap()), "root")
}

/// Restores whatever decodes; a state that was taken must be one that can be saved and run.
fn feed<D: VirtioDevice>(device: D, raw: &[u8])
where
    D::State: Serialize,
{
    let Ok(state) = postcard::from_bytes::<VirtioState<D::State>>(raw) else { return };
    let memory = GuestMemory::new(4 << 20).unwrap();
    let transport = MmioTransport::new(memory, Arc::new(device), Arc::new(NoLine));
    if transport.restore(&state).is_ok() {
        transport.resume();
        transport.save();
    }
}

/// A state that some device was really in, as bytes.
fn real<D: VirtioDevice>(device: D) -> Vec<u8> {
    let driver = Driver::started(Arc::new(device));
    postcard::to_stdvec(&Saved::save(&*driver.transport)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn spoiled_states_are_refused_or_harmless(
        noise in prop::collection::vec(any::<u8>(), 0..80),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let all = [
            real(blk()),
            real(Rng::from_host()),
            real(Balloon::new()),
            real(Vsock::new(3)),
            real(Fs::new(Vec::new())),
            noise,
        ];
        for mut raw in all {
            for (at, value) in &flips {
                if !raw.is_empty() {
                    let at = at.index(raw.len());
                    raw[at] = *value;
                }
            }
            feed(blk(), &raw);
            feed(Rng::from_host(), &raw);
            feed(Balloon::new(), &raw);
            feed(Console::new(Box::new(Tail::new(16))), &raw);
            feed(Vsock::new(3), &raw);
            feed(Fs::new(Vec::new()), &raw);
            if let Ok(state) = postcard::from_bytes::<SerialState>(&raw) {
                let _ = Serial::new(Arc::new(NoLine), Box::new(Tail::new(16))).restore(&state);
            }
            if let Ok(state) = postcard::from_bytes::<IoApicState>(&raw) {
                let _ = IoApic::new(Arc::new(|_, _| ())).restore(&state);
            }
            if let Ok(state) = postcard::from_bytes::<GedState>(&raw) {
                let _ = Ged::new(Arc::new(NoLine)).restore(&state);
            }
        }
    }
}
