//! The ordered list of a machine's devices, as saving and restoring see them.

use std::sync::Arc;

use bus::Saved;
use snapshot::PartState;
use virtio::{MmioTransport, VirtioDevice};

use crate::Error;

/// A device with a state that travels.
pub(crate) trait Part: Send + Sync {
    /// Unique in the machine; part of the format.
    fn name(&self) -> &'static str;
    /// Stops the device's own threads from touching guest memory; vCPUs stand already.
    fn pause(&self) {}
    /// Undoes `pause`.
    fn resume(&self) {}
    fn save(&self) -> Result<PartState, Error>;
    fn restore(&self, state: &PartState) -> Result<(), Error>;
}

/// A device without threads.
pub(crate) struct Plain<D>(pub &'static str, pub Arc<D>);

impl<D: Saved + Send + Sync> Part for Plain<D> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn save(&self) -> Result<PartState, Error> {
        Ok(PartState::new(self.0, &self.1.save())?)
    }

    fn restore(&self, state: &PartState) -> Result<(), Error> {
        Ok(self.1.restore(&state.get()?)?)
    }
}

/// A virtio device behind its transport.
pub(crate) struct Virtio<D: VirtioDevice>(pub &'static str, pub Arc<MmioTransport<D>>);

impl<D: VirtioDevice> Part for Virtio<D> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn pause(&self) {
        self.1.pause();
    }

    fn resume(&self) {
        self.1.resume();
    }

    fn save(&self) -> Result<PartState, Error> {
        Ok(PartState::new(self.0, &Saved::save(self.1.as_ref()))?)
    }

    fn restore(&self, state: &PartState) -> Result<(), Error> {
        Ok(Saved::restore(self.1.as_ref(), &state.get()?)?)
    }
}

/// All parts, in the order in which they are saved and restored.
#[derive(Default)]
pub(crate) struct Parts(Vec<Box<dyn Part>>);

impl Parts {
    pub(crate) fn push(&mut self, part: impl Part + 'static) {
        self.0.push(Box::new(part));
    }

    pub(crate) fn pause(&self) {
        self.0.iter().for_each(|p| p.pause());
    }

    pub(crate) fn resume(&self) {
        self.0.iter().for_each(|p| p.resume());
    }

    pub(crate) fn save(&self) -> Result<Vec<PartState>, Error> {
        self.0.iter().map(|p| p.save()).collect()
    }

    /// The same walk, by name: a part without a state, or a state without a part, is refused.
    pub(crate) fn restore(&self, states: &[PartState]) -> Result<(), Error> {
        if states.len() != self.0.len() {
            let what = format!("{} device states for {} devices", states.len(), self.0.len());
            return Err(Error::Mismatch(what));
        }
        for (part, state) in self.0.iter().zip(states) {
            if part.name() != state.name {
                return Err(Error::Mismatch(format!(
                    "device `{}` where `{}` belongs",
                    state.name,
                    part.name()
                )));
            }
            part.restore(state)?;
        }
        Ok(())
    }
}
