//! [`load`]: everything into memory, in one pass.

use arch::x86_64::state::VcpuState;
use guestmem::{GuestMemory, MMIO_HOLE_START, PAGE_SIZE};
use thiserror::Error;

use crate::acpi::{self, AcpiConfig};
use crate::{elf, layout, params, start};

/// What stands in the way of booting.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the kernel image cannot be used: {0}")]
    Kernel(&'static str),
    #[error(
        "{what} does not fit into the machine's memory (it needs RAM up to {need:#x}); give it more memory"
    )]
    NoRoom { what: &'static str, need: u64 },
    #[error("the kernel command line is {0} bytes long; at most {max} fit", max = layout::CMDLINE_MAX - 1)]
    CommandLine(usize),
}

/// What to boot.
pub struct BootConfig<'a> {
    /// `vmlinux`, an ELF file.
    pub kernel: &'a [u8],
    /// A cpio archive; empty: none.
    pub initramfs: &'a [u8],
    pub command_line: &'a str,
    /// Seed for the kernel's random number generator (SETUP_RNG_SEED).
    pub rng_seed: [u8; 32],
    pub acpi: AcpiConfig,
}

/// A machine ready to start.
pub struct Loaded {
    /// State of the boot processor at the kernel's 64-bit entry point.
    pub vcpu: VcpuState,
}

/// Fills fresh guest memory.
///
/// # Errors
/// [`Error`]: the kernel is not one, or something does not fit.
pub fn load(memory: &GuestMemory, config: &BootConfig<'_>) -> Result<Loaded, Error> {
    let (entry, kernel_end) = elf::load_elf(memory, config.kernel)?;
    let initramfs = place_initramfs(memory, config.initramfs, kernel_end)?;
    let rsdp = acpi::write_tables(memory, &config.acpi)?;
    params::write_command_line(memory, config.command_line)?;
    params::write_boot_params(memory, initramfs, rsdp, &config.rng_seed)?;
    start::write_tables(memory)?;
    Ok(Loaded { vcpu: start::entry_state(entry) })
}

/// At the top of low RAM, out of the kernel's way. Returns (address, bytes).
fn place_initramfs(memory: &GuestMemory, image: &[u8], kernel_end: u64) -> Result<(u64, u64), Error> {
    if image.is_empty() {
        return Ok((0, 0));
    }
    let len = image.len() as u64;
    let top = memory.size().min(MMIO_HOLE_START);
    let no_room = Error::NoRoom { what: "the initramfs", need: kernel_end.saturating_add(len) };
    let Some(at) = top.checked_sub(len).map(|at| at & !(PAGE_SIZE - 1)) else { return Err(no_room) };
    if at < kernel_end {
        return Err(no_room);
    }
    memory.write(at, image).map_err(|_| no_room)?;
    Ok((at, len))
}
