//! Why a vCPU stopped. The exit carries its reply slot: fill `data`, call `run` again.

/// One reason to leave [`crate::Vcpu::run`].
///
/// A read's `data` slot must be filled before the next `run` or `settle`; what is in it then is
/// what the guest sees. Slices are 1, 2, 4 or 8 bytes, little-endian.
#[derive(Debug)]
pub enum Exit<'a> {
    /// IN or INS: port, bytes to fill.
    PioRead { port: u16, data: &'a mut [u8] },
    /// OUT or OUTS.
    PioWrite { port: u16, data: &'a [u8] },
    /// A load from a guest-physical address that is not RAM.
    MmioRead { gpa: u64, data: &'a mut [u8] },
    /// A store to a guest-physical address that is not RAM.
    MmioWrite { gpa: u64, data: &'a [u8] },
    /// The guest acknowledged this level-triggered vector: tell the IOAPIC.
    IoapicEoi { vector: u8 },
    /// [`crate::Kick::kick`] was called.
    Kicked,
    /// One of the debugger's [`crate::Stops`] holds; `run` goes on from there.
    Debug,
    /// Triple fault: the guest cannot go on.
    Shutdown,
    /// The engine met something that it cannot execute, with what it knows for the user.
    Failed { reason: String },
}
