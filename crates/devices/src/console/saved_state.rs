//! What travels of a console.

use bus::RestoreError;
use serde::{Deserialize, Serialize};

use super::worker::{INPUT_LIMIT, Inner};

const VERSION: u32 = 1;
const NAME: &str = "virtio-console";

/// Window size, and input that the guest has not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// 1.
    pub version: u32,
    pub columns: u16,
    pub rows: u16,
    pub input: Vec<u8>,
}

impl ConsoleState {
    pub(super) fn of(inner: &Inner) -> Self {
        let input = inner.input.iter().copied().collect();
        Self { version: VERSION, columns: inner.columns, rows: inner.rows, input }
    }

    pub(super) fn apply(&self, inner: &mut Inner) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, self.version, VERSION)?;
        if self.input.len() > INPUT_LIMIT {
            return Err(RestoreError::invalid(NAME, format!("{} bytes of input", self.input.len())));
        }
        inner.input = self.input.iter().copied().collect();
        (inner.columns, inner.rows) = (self.columns, self.rows);
        Ok(())
    }
}
