//! How interrupts travel: from devices and between vCPUs, across threads.
//!
//! Each local APIC has a [`Mailbox`]: vectors and events are set in it by anybody, and taken out by
//! the vCPU that owns the APIC when its poll flag says so. What a sender must know of the receiver to
//! address it (mode, logical id, enabled or not) is in the mailbox, too, kept up to date by the owner.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use crate::cpu::PollFlag;
use crate::peers::Peers;

/// Delivery modes of ICR and MSI (SDM vol. 3, 11.6.1).
pub(super) mod delivery {
    pub const FIXED: u32 = 0;
    pub const LOWEST: u32 = 1;
    pub const NMI: u32 = 4;
    pub const INIT: u32 = 5;
    pub const SIPI: u32 = 6;
}

/// Events beside vectors; bits of [`Mailbox::events`].
pub(crate) mod event {
    pub const NMI: u32 = 1;
    pub const INIT: u32 = 1 << 1;
    pub const SIPI: u32 = 1 << 2;
    pub const SIPI_VECTOR_SHIFT: u32 = 8;
}

/// How a LAPIC can be addressed; bits of [`Mailbox::mode`].
pub(super) mod mode {
    /// Hardware-enabled (IA32_APIC_BASE bit 11).
    pub const ENABLED: u32 = 1;
    pub const X2APIC: u32 = 1 << 1;
    /// Software-enabled (SVR bit 8): accepts vectors.
    pub const ACCEPTS: u32 = 1 << 2;
}

/// Called after something was put into a halted vCPU's mailbox, from any thread.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// One local APIC's letter box.
#[derive(Default)]
pub(crate) struct Mailbox {
    irr: [AtomicU32; 8],
    /// Trigger mode of what is in `irr`: level when set.
    level: [AtomicU32; 8],
    events: AtomicU32,
    pub(super) mode: AtomicU32,
    pub(super) ldr: AtomicU32,
    pub(super) dfr: AtomicU32,
    poll: OnceLock<Arc<PollFlag>>,
    wake: OnceLock<Wake>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mailbox {{ events: {:#x} }}", self.events.load(Ordering::Relaxed))
    }
}

impl Mailbox {
    pub(super) fn attach(&self, poll: Arc<PollFlag>) {
        let _ = self.poll.set(poll);
    }

    fn notify(&self) {
        if let Some(poll) = self.poll.get() {
            poll.raise(PollFlag::APIC);
        }
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    /// Puts a vector in; vectors below 16 are illegal and dropped (SDM vol. 3, 11.5.2).
    pub(super) fn post_vector(&self, vector: u8, level: bool) {
        if vector < 16 || self.mode.load(Ordering::Acquire) & mode::ACCEPTS == 0 {
            return;
        }
        let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        if level {
            self.level[word].fetch_or(bit, Ordering::AcqRel);
        } else {
            self.level[word].fetch_and(!bit, Ordering::AcqRel);
        }
        self.irr[word].fetch_or(bit, Ordering::AcqRel);
        self.notify();
    }

    fn post_event(&self, bits: u32) {
        self.events.fetch_or(bits, Ordering::AcqRel);
        self.notify();
    }

    fn post_sipi(&self, vector: u8) {
        let both = event::SIPI | u32::from(vector) << event::SIPI_VECTOR_SHIFT;
        // The last vector counts, as long as nobody has taken the first.
        let set = |old: u32| Some((old & !(0xff << event::SIPI_VECTOR_SHIFT)) | both);
        let _ = self.events.fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
        self.notify();
    }

    /// Takes the vectors that came: for each word of 32, (vectors, level-triggered ones of them).
    pub(super) fn take_vectors(&self) -> [(u32, u32); 8] {
        std::array::from_fn(|i| {
            if self.irr[i].load(Ordering::Relaxed) == 0 {
                return (0, 0);
            }
            let vectors = self.irr[i].swap(0, Ordering::AcqRel);
            (vectors, self.level[i].load(Ordering::Acquire) & vectors)
        })
    }

    /// Takes the events that came (see [`event`]).
    pub(crate) fn take_events(&self) -> u32 {
        if self.events.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.events.swap(0, Ordering::AcqRel)
    }
}

/// A message to local APICs (SDM vol. 3, 11.6.1 and 11.11).
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub destination: u32,
    pub logical: bool,
    /// The destination has the 8 bits of the xAPIC.
    pub narrow: bool,
    pub delivery: u32,
    pub vector: u8,
    pub level: bool,
}

/// Routes interrupts between vCPUs and from devices.
#[derive(Debug)]
pub struct ApicBus {
    boxes: Vec<Arc<Mailbox>>,
    /// Where the search for the next lowest-priority receiver begins: they take turns.
    turn: AtomicU32,
    peers: Arc<Peers>,
}

impl ApicBus {
    /// A bus of `vcpus` local APICs with ids from 0.
    pub fn new(vcpus: u32) -> Self {
        Self {
            boxes: (0..vcpus).map(|_| Arc::default()).collect(),
            turn: AtomicU32::new(0),
            peers: Arc::new(Peers::new(vcpus)),
        }
    }

    /// Installs the call that wakes vCPU `id` when it waits outside of `run`; once each.
    pub fn set_wake(&self, id: u32, wake: Wake) {
        if let Some(mailbox) = self.boxes.get(id as usize) {
            let _ = mailbox.wake.set(wake);
        }
    }

    /// What the vCPUs know of each other, if there are several.
    pub(crate) fn peers(&self) -> Option<Arc<Peers>> {
        (self.boxes.len() > 1).then(|| Arc::clone(&self.peers))
    }

    pub(super) fn mailbox(&self, id: u32) -> Arc<Mailbox> {
        self.boxes.get(id as usize).map(Arc::clone).unwrap_or_default()
    }

    /// Delivers a message-signalled interrupt (SDM vol. 3, 11.11). Addresses outside of the local
    /// APICs' window go nowhere, as on a bus.
    pub fn deliver_msi(&self, address: u64, data: u32) {
        if address >> 20 != 0xfee {
            return;
        }
        let message = Message {
            destination: (address >> 12) as u32 & 0xff,
            logical: address & 4 != 0,
            narrow: true,
            delivery: (data >> 8) & 7,
            vector: data as u8,
            level: data & (1 << 15) != 0,
        };
        self.send(&message, |_| true);
    }

    /// Sends to all that match and that `wanted` (by id) lets through.
    pub(super) fn send(&self, message: &Message, wanted: impl Fn(u32) -> bool) {
        let matches = |i: usize| wanted(i as u32) && addressed(i as u32, &self.boxes[i], message);
        if message.delivery == delivery::LOWEST {
            let start = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
            let count = self.boxes.len();
            let order = (0..count).map(|i| (start + i) % count);
            let accepts =
                |i: &usize| matches(*i) && self.boxes[*i].mode.load(Ordering::Acquire) & mode::ACCEPTS != 0;
            if let Some(i) = order.into_iter().find(accepts) {
                self.boxes[i].post_vector(message.vector, message.level);
            }
            return;
        }
        for i in (0..self.boxes.len()).filter(|i| matches(*i)) {
            let mailbox = &self.boxes[i];
            match message.delivery {
                delivery::FIXED => mailbox.post_vector(message.vector, message.level),
                delivery::NMI => mailbox.post_event(event::NMI),
                delivery::INIT => mailbox.post_event(event::INIT),
                delivery::SIPI => mailbox.post_sipi(message.vector),
                // SMI, ExtINT and the reserved modes have no source and no receiver here.
                _ => {}
            }
        }
    }
}

/// Whether a message is for this APIC (SDM vol. 3, 11.6.2 and 11.12.10).
fn addressed(id: u32, mailbox: &Mailbox, message: &Message) -> bool {
    let flags = mailbox.mode.load(Ordering::Acquire);
    if flags & mode::ENABLED == 0 {
        // INIT and SIPI reach a processor whose APIC is off by its physical id only.
        return !message.logical && message.destination == id;
    }
    let x2apic = flags & mode::X2APIC != 0;
    if !message.logical {
        return match (message.narrow, x2apic) {
            (true, _) => message.destination == 0xff || message.destination == id & 0xff,
            (false, _) => message.destination == u32::MAX || message.destination == id,
        };
    }
    let ldr = mailbox.ldr.load(Ordering::Acquire);
    if x2apic {
        // A narrow logical destination can only mean cluster 0.
        let broadcast = !message.narrow && message.destination == u32::MAX;
        return broadcast
            || (message.destination >> 16 == ldr >> 16 && message.destination & ldr & 0xffff != 0);
    }
    let (dest, own) = (message.destination & 0xff, ldr >> 24);
    if dest == 0xff {
        return true;
    }
    if mailbox.dfr.load(Ordering::Acquire) >> 28 == 0xf {
        dest & own != 0
    } else {
        dest >> 4 == own >> 4 && dest & own & 0xf != 0
    }
}
