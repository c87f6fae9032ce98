//! What travels of a transport, and how it is checked when it comes back.

use bus::RestoreError;
use guestmem::GuestMemory;
use serde::{Deserialize, Serialize};

use crate::features::{self, status};
use crate::{Queue, QueueLayout};

/// Newest version of [`TransportState`].
pub(crate) const VERSION: u32 = 1;
const NAME: &str = "virtio transport";

/// A transport and the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState<S> {
    pub transport: TransportState,
    pub device: S,
}

/// Registers of a transport (4.2.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// 1.
    pub version: u32,
    /// Device type: the state of another device is refused.
    pub kind: u32,
    pub status: u32,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub driver_features: u64,
    pub queue_sel: u32,
    pub interrupt_status: u32,
    pub config_generation: u32,
    pub queues: Vec<QueueState>,
}

/// One queue: where it is and how far it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    pub size: u16,
    pub ready: bool,
    pub desc: u64,
    pub driver: u64,
    pub device: u64,
    pub next_avail: u16,
    pub next_used: u16,
    pub signalled: u16,
}

impl QueueState {
    pub(crate) fn of(queue: &Queue) -> Self {
        let QueueLayout { size, desc, driver, device } = queue.layout;
        Self {
            size,
            ready: queue.ready,
            desc,
            driver,
            device,
            next_avail: queue.next_avail,
            next_used: queue.next_used,
            signalled: queue.signalled,
        }
    }

    fn queue(&self, max_size: u16, memory: &GuestMemory, negotiated: u64) -> Result<Queue, RestoreError> {
        let mut queue = Queue::new(max_size);
        let &Self { size, desc, driver, device, .. } = self;
        queue.layout = QueueLayout { size, desc, driver, device };
        queue.next_avail = self.next_avail;
        queue.next_used = self.next_used;
        queue.signalled = self.signalled;
        if self.ready {
            let ready = queue.make_ready(memory, negotiated);
            ready.map_err(|e| RestoreError::invalid(NAME, e.to_string()))?;
        }
        Ok(queue)
    }
}

impl TransportState {
    /// Checks everything and makes the queues; nothing is applied yet.
    pub(crate) fn queues(
        &self,
        kind: u32,
        offered: u64,
        sizes: &[u16],
        memory: &GuestMemory,
    ) -> Result<Vec<Queue>, RestoreError> {
        let invalid = |what: String| Err(RestoreError::invalid(NAME, what));
        RestoreError::check_version(NAME, self.version, VERSION)?;
        if self.kind != kind {
            return invalid(format!("it belongs to a device of type {}, not {kind}", self.kind));
        }
        if self.queues.len() != sizes.len() {
            return invalid(format!("{} queues, the device has {}", self.queues.len(), sizes.len()));
        }
        if self.status & !(status::BY_DRIVER | status::NEEDS_RESET) != 0 {
            return invalid(format!("status {:#x}", self.status));
        }
        let ok = self.status & status::FEATURES_OK != 0;
        let lacking = self.driver_features & !offered;
        if ok && (lacking != 0 || self.driver_features & features::VERSION_1 == 0) {
            return invalid(format!("features {:#x} are not offered here", self.driver_features));
        }
        if !ok && (self.status & status::DRIVER_OK != 0 || self.queues.iter().any(|q| q.ready)) {
            return invalid("queues without negotiated features".into());
        }
        let make = |(state, max): (&QueueState, &u16)| state.queue(*max, memory, self.driver_features);
        self.queues.iter().zip(sizes).map(make).collect()
    }
}
