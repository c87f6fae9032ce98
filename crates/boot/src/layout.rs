//! The guest-physical address map. It is part of the machine's ABI: a snapshot's devices live at
//! these addresses, so a change needs a new machine version.
//!
//! ```text
//! 0x0000_7000  boot_params (zero page)      0xc000_0000  end of low RAM (guestmem)
//! 0x0000_8000  setup_data: RNG seed         0xd000_0000  virtio-mmio slots, 4 KiB each
//! 0x0000_9000  PML4, PDPT, PD               0xd010_0000  GED, sleep control, reset
//! 0x0000_f000  GDT                          0xfec0_0000  IOAPIC
//! 0x0002_0000  command line                 0xfee0_0000  local APICs
//! 0x000e_0000  ACPI tables, VMGenID         0x1_0000_0000  high RAM
//! 0x0010_0000  RAM (kernel at 16 MiB)
//! ```

/// boot_params, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// setup_data node with the RNG seed.
pub const SETUP_DATA: u64 = 0x8000;
/// Page tables for the identity map of the first GiB: three pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// Boot GDT.
pub const GDT: u64 = 0xf000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest command line in bytes with its NUL.
pub const CMDLINE_MAX: usize = 4096;
/// End of conventional memory given to the kernel.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// RSDP, and the tables behind it.
pub const ACPI_START: u64 = 0xe_0000;
/// The VM generation identifier, 16 bytes, alone in its page.
pub const VMGENID: u64 = 0xf_f000;
/// End of the reserved area.
pub const ACPI_END: u64 = 0x10_0000;

/// First virtio-mmio slot.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Bytes per slot.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Most slots there can be: one GSI each.
pub const VIRTIO_SLOTS: usize = 14;
/// GSI of slot 0; slot n has this plus n.
pub const VIRTIO_GSI: u32 = 10;
/// Generic event device: 4-byte event register, cleared by reading.
pub const GED_BASE: u64 = 0xd010_0000;
/// Bytes of the GED's registers.
pub const GED_SIZE: u64 = 0x10;
/// GSI of the GED.
pub const GED_GSI: u32 = 9;
/// ACPI sleep control, sleep status (one byte each) and reset register.
pub const POWER_BASE: u64 = 0xd010_1000;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Value that resets.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5 (soft off).
pub const SLP_TYP_S5: u8 = 5;
/// Serial port (16550A).
pub const SERIAL_PORT: u16 = 0x3f8;
/// GSI of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// IOAPIC registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Pins of the IOAPIC, GSIs 0 to 23.
pub const IOAPIC_PINS: u32 = 24;
