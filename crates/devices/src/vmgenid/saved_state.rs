//! What travels of the event register. (The identifier is in RAM, and is replaced.)

use std::sync::atomic::Ordering;

use bus::{RestoreError, Saved};
use serde::{Deserialize, Serialize};

use super::regs::{Events, Ged};

const VERSION: u32 = 1;
const NAME: &str = "event device";

/// Events that the guest has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GedState {
    /// 1.
    pub version: u32,
    pub pending: u32,
}

impl Saved for Ged {
    type State = GedState;

    fn save(&self) -> GedState {
        GedState { version: VERSION, pending: self.pending.load(Ordering::Acquire) }
    }

    fn restore(&self, state: &GedState) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, state.version, VERSION)?;
        if state.pending & !Events::ALL != 0 {
            return Err(RestoreError::invalid(NAME, format!("events {:#x}", state.pending)));
        }
        self.pending.store(state.pending, Ordering::Release);
        Ok(())
    }
}
