//! The local APIC.
use std::sync::Arc;

use crate::cpu::PollFlag;

/// Routes interrupts between vCPUs.
#[derive(Debug, Default)]
pub struct ApicBus {}

#[derive(Debug, Default)]
pub(crate) struct Lapic {}

impl Lapic {
    pub(crate) fn new(_id: u32, _bus: Arc<ApicBus>, _poll: Arc<PollFlag>) -> Self {
        Self {}
    }
}
