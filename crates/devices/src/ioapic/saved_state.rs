//! What travels of the interrupt controller.

use bus::{RestoreError, Saved, lock};
use serde::{Deserialize, Serialize};

use super::regs::{ENTRY, IoApic, PINS, Registers};

const VERSION: u32 = 1;
const NAME: &str = "I/O APIC";

/// Registers, wires, and edges that wait for their pin to be unmasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// 1.
    pub version: u32,
    pub select: u8,
    pub id: u8,
    /// One bit a pin.
    pub levels: u32,
    /// One bit a pin.
    pub edges: u32,
    /// Redirection entries, 24.
    pub entries: Vec<u64>,
}

impl Saved for IoApic {
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        let r = lock(&self.registers);
        IoApicState {
            version: VERSION,
            select: r.select,
            id: r.id,
            levels: r.levels,
            edges: r.edges,
            entries: r.entries.to_vec(),
        }
    }

    fn restore(&self, s: &IoApicState) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, s.version, VERSION)?;
        let invalid = |what: &str| RestoreError::invalid(NAME, what);
        let entries: [u64; PINS] =
            s.entries.as_slice().try_into().map_err(|_| invalid("it does not have 24 pins"))?;
        if entries.iter().any(|e| e & !ENTRY != 0) {
            return Err(invalid("a redirection entry with reserved bits"));
        }
        if s.id > 0x0f || (s.levels | s.edges) >> PINS != 0 {
            return Err(invalid("an id or a pin that it does not have"));
        }
        let registers = Registers { select: s.select, id: s.id, entries, levels: s.levels, edges: s.edges };
        *lock(&self.registers) = registers;
        Ok(())
    }
}
