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
    /// How hot it was, by samples; comparable within one list only. 0: it was hot, and no sample says how much.
    pub heat: u32,
}
