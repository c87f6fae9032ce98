//! Where a debugger wants a vCPU to stop.

/// Conditions, looked at after each instruction: a vCPU goes on from a place where it stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// After one instruction.
    pub step: bool,
    /// Before the instruction at one of these linear addresses.
    pub at: Vec<u64>,
}

impl Stops {
    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.step || !self.at.is_empty()
    }

    /// Whether a vCPU that comes to `rip` stops.
    pub fn holds(&self, rip: u64) -> bool {
        self.step || self.at.contains(&rip)
    }
}
