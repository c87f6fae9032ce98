//! Numbers that driver and device share.

/// Feature: the ring may hold tables of descriptors (2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Feature: both sides say at which index they want to hear next (2.7.7, 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// Feature: not a legacy device (6.1). Must be accepted.
pub const VERSION_1: u64 = 1 << 32;
/// What the transport and the queues bring to every device.
pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;

/// Device status bits (2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
    /// Every bit that a driver may set.
    pub const BY_DRIVER: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Device types (5).
pub mod kind {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const ENTROPY: u32 = 4;
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
    pub const FS: u32 = 26;
}

/// Descriptor flags (2.7.5).
pub mod desc {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
    /// Bytes of one descriptor.
    pub const SIZE: u64 = 16;
}

/// Available-ring flag: the driver wants no interrupts (2.7.6).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// Used-ring flag: the device wants no notifications (2.7.8).
pub const USED_NO_NOTIFY: u16 = 1;
