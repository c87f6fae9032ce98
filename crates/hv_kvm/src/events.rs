//! Events between KVM and other threads: notifications of queues that are no exits, interrupts by descriptor.
//!
//! Problem: a queue's notification that returns to user space holds up its vCPU for as long as the device works;
//! KVM can signal an eventfd instead (KVM_IOEVENTFD, Documentation/virt/kvm/api.rst 4.59), and take interrupts from
//! one (KVM_IRQFD, 4.75).
//!
//! Strategy: the routes of the split interrupt controller's pins, the first 24, belong to level-triggered
//! messages, whose acknowledgement KVM tells only if it finds them there. Edges of pin `p` have route `24 + p`.
//!
//! Invariants: the IOAPIC stays the only one who decides whether a pin sends; what is here is the way of a message
//! that it sent. A pin has a route only after it sent the same message [`SETTLED`] times: setting routes waits
//! for every CPU that reads them (SRCU), and a resume must not pay that for each of its devices.

#![allow(unsafe_code)] // vmm-sys-util's EventFd is made of a number.

use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ::host::Event;
use hv::{Error, Msi};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::abi::{ENGINE, host};

/// Pins of our IOAPIC.
pub(crate) const IOAPIC_PINS: u32 = 24;
/// MSI data: level-triggered (SDM vol. 3, 11.11.2).
pub(crate) const MSI_LEVEL: u32 = 1 << 15;
/// So many times a pin sends the same message before it has a route.
const SETTLED: u8 = 8;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A second handle to an event, as kvm-ioctls wants it.
fn handle(event: &Event) -> Result<EventFd, Error> {
    let fd = event.as_fd().try_clone_to_owned().map_err(|source| Error::Host {
        engine: ENGINE,
        what: "duplicating an eventfd",
        source,
    })?;
    // SAFETY: the descriptor was just made, is an eventfd, and belongs to nobody else.
    Ok(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) })
}

fn event() -> Result<Event, Error> {
    Event::new().map_err(|source| Error::Host { engine: ENGINE, what: "making an eventfd", source })
}

/// Makes stores of `value` at `address` an event.
pub(crate) fn doorbell(vm: &VmFd, address: u64, value: u32) -> Result<Event, Error> {
    let event = event()?;
    vm.register_ioevent(&handle(&event)?, &IoEventAddress::Mmio(address), value)
        .map_err(host("KVM_IOEVENTFD"))?;
    Ok(event)
}

/// An edge-triggered pin.
#[derive(Default)]
struct Edge {
    message: Option<Msi>,
    /// How often it came in a row.
    seen: u8,
    /// Raises it, once it has a route.
    event: Option<Event>,
}

/// Where interrupts of the machine's pins go.
#[derive(Default)]
pub(crate) struct Routes {
    /// Level-triggered messages whose acknowledgement KVM was asked to tell, at most [`IOAPIC_PINS`].
    level: Vec<Msi>,
    edges: [Edge; IOAPIC_PINS as usize],
}

impl Routes {
    /// Makes KVM tell of the acknowledgement of a level-triggered message.
    pub(crate) fn watch(&mut self, vm: &VmFd, msi: Msi) -> Result<(), Error> {
        if self.level.contains(&msi) {
            return Ok(());
        }
        if self.level.len() == IOAPIC_PINS as usize {
            self.level.remove(0);
        }
        self.level.push(msi);
        self.set(vm)
    }

    /// Raises an edge of `pin` by its event; `false` when it has none and is to be sent as a message.
    pub(crate) fn pulse(&mut self, vm: &VmFd, pin: u8, msi: Msi) -> Result<bool, Error> {
        let Some(edge) = self.edges.get_mut(usize::from(pin)) else { return Ok(false) };
        if edge.message != Some(msi) {
            // The route, if there is one, is stale until the new message settles too.
            (edge.message, edge.seen) = (Some(msi), 0);
        }
        if edge.seen < SETTLED {
            edge.seen += 1;
            if edge.seen < SETTLED {
                return Ok(false);
            }
            if edge.event.is_none() {
                let event = event()?;
                vm.register_irqfd(&handle(&event)?, IOAPIC_PINS + u32::from(pin))
                    .map_err(host("KVM_IRQFD"))?;
                edge.event = Some(event);
            }
            self.set(vm)?;
        }
        let event = self.edges.get(usize::from(pin)).and_then(|edge| edge.event.as_ref());
        event.inspect(|event| event.signal());
        Ok(event.is_some())
    }

    /// Gives KVM the whole table.
    fn set(&self, vm: &VmFd) -> Result<(), Error> {
        let settled = |edge: &Edge| edge.message.filter(|_| edge.seen == SETTLED);
        let edges = (IOAPIC_PINS..).zip(self.edges.iter().map(settled));
        let edges = edges.filter_map(|(gsi, message)| message.map(|message| (gsi, message)));
        let routes: Vec<_> = (0u32..)
            .zip(self.level.iter().copied())
            .chain(edges)
            .map(|(gsi, msi)| {
                let mut route =
                    kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
                route.u.msi.address_lo = msi.address as u32;
                route.u.msi.address_hi = (msi.address >> 32) as u32;
                route.u.msi.data = msi.data;
                route
            })
            .collect();
        let routes = KvmIrqRouting::from_entries(&routes).map_err(|_| Error::Unsupported {
            engine: ENGINE,
            what: format!("{} interrupt routes", routes.len()),
            advice: "report it: there are never more than 48",
        })?;
        vm.set_gsi_routing(&routes).map_err(host("KVM_SET_GSI_ROUTING"))
    }
}
