//! One instruction, the state it starts from, and what came out.

use std::fmt::Write as _;

/// Address of the scratch area that memory operands and the stack lie in, on both sides.
pub const SCRATCH: u64 = 0x2100_0000;
/// Its size; the page after it is not mapped.
pub const SCRATCH_LEN: usize = 0x1000;
/// Address of the instruction, on both sides.
pub const CODE: u64 = 0x2200_0800;
/// Where branches lead that are taken.
pub const TARGET: u64 = CODE + 0x60;

/// Base of GS on both sides (the host's libraries leave that register alone).
pub const GS_BASE: u64 = 0x0080_0000;

/// What an instruction sees and changes.
#[derive(Clone, PartialEq, Eq)]
pub struct State {
    pub gpr: [u64; 16],
    pub rflags: u64,
    /// FXSAVE64 image.
    pub fx: [u8; 512],
    pub mem: Box<[u8; SCRATCH_LEN]>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The next instruction.
    Next,
    /// [`TARGET`].
    Taken,
    /// An exception.
    Vector(u8),
    /// The executor does not know the instruction.
    Unknown,
}

/// One case: the bytes of the instruction and the state before.
#[derive(Clone)]
pub struct Case {
    pub bytes: Vec<u8>,
    pub before: State,
    /// For sequences: RFLAGS bits that are undefined at the end, and at any point before.
    pub loose: Option<(u64, u64)>,
}

/// The state after, of one executor.
#[derive(Clone)]
pub struct Outcome {
    pub end: End,
    /// Where an exception was found; 0 for the other ends.
    pub rip: u64,
    pub after: State,
}

/// `0f58c1` and the like.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
