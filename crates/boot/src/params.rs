//! boot_params and the command line (Linux: Documentation/arch/x86/boot.rst and zero-page.rst).

use guestmem::{GuestMemory, MMIO_HOLE_END, MMIO_HOLE_START};

use crate::layout;
use crate::load::Error;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// setup_data type SETUP_RNG_SEED.
const SETUP_RNG_SEED: u32 = 9;

fn low_memory(_: guestmem::Error) -> Error {
    Error::NoRoom { what: "the boot tables", need: layout::ACPI_END }
}

pub(crate) fn write_command_line(memory: &GuestMemory, line: &str) -> Result<(), Error> {
    if line.len() >= layout::CMDLINE_MAX || line.bytes().any(|b| b == 0) {
        return Err(Error::CommandLine(line.len()));
    }
    memory.write(layout::CMDLINE, line.as_bytes()).map_err(low_memory)?;
    memory.write_le(layout::CMDLINE + line.len() as u64, 0u8).map_err(low_memory)
}

/// The memory map: (start, bytes, type), ascending.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let low_end = memory.size().min(MMIO_HOLE_START);
    let mut map = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (layout::ACPI_START, layout::ACPI_END - layout::ACPI_START, E820_RESERVED),
        (layout::ACPI_END, low_end.saturating_sub(layout::ACPI_END), E820_RAM),
    ];
    if memory.size() > low_end {
        map.push((MMIO_HOLE_END, memory.size() - low_end, E820_RAM));
    }
    map
}

pub(crate) fn write_boot_params(
    memory: &GuestMemory,
    (initramfs, initramfs_len): (u64, u64),
    rsdp: u64,
    rng_seed: &[u8; 32],
) -> Result<(), Error> {
    let mut page = [0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x070, &rsdp.to_le_bytes()); // acpi_rsdp_addr
    put(0x0c0, &((initramfs >> 32) as u32).to_le_bytes()); // ext_ramdisk_image
    put(0x1fe, &0xaa55u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes()); // boot protocol 2.15
    put(0x210, &[0xff]); // type_of_loader: undefined
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x218, &(initramfs as u32).to_le_bytes()); // ramdisk_image
    put(0x21c, &(initramfs_len as u32).to_le_bytes()); // ramdisk_size
    put(0x228, &(layout::CMDLINE as u32).to_le_bytes()); // cmd_line_ptr
    put(0x230, &0x0100_0000u32.to_le_bytes()); // kernel_alignment
    put(0x238, &(layout::CMDLINE_MAX as u32 - 1).to_le_bytes()); // cmdline_size
    put(0x250, &layout::SETUP_DATA.to_le_bytes()); // setup_data
    let map = memory_map(memory);
    put(0x1e8, &[map.len() as u8]); // e820_entries
    for (i, (start, len, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + i * 20;
        put(at, &start.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    memory.write(layout::ZERO_PAGE, &page).map_err(low_memory)?;
    write_seed(memory, rng_seed)
}

/// struct setup_data: next u64, type u32, len u32, data.
fn write_seed(memory: &GuestMemory, seed: &[u8; 32]) -> Result<(), Error> {
    let mut node = [0u8; 16 + 32];
    node[8..12].copy_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    node[12..16].copy_from_slice(&32u32.to_le_bytes());
    node[16..].copy_from_slice(seed);
    memory.write(layout::SETUP_DATA, &node).map_err(low_memory)
}
