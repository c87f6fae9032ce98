//! Which code of a machine ran often: a hint for whoever executes it next, never part of its state.

/// How code at a place was executed: the same bytes are other instructions in another mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CodeMode {
    /// 64-bit mode, privilege 0 to 2.
    Supervisor64 = 0,
    /// 64-bit mode, privilege 3.
    User64 = 1,
}

impl CodeMode {
    /// The mode with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Supervisor64, Self::User64].into_iter().find(|mode| *mode as u8 == number)
    }
}

/// A place that was often executed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotBlock {
    /// Guest-physical address of its first instruction.
    pub address: u64,
    pub mode: CodeMode,
    /// How often it was come by, as the engine counts that; to be compared within one list only.
    pub heat: u32,
}
