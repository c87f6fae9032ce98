//! What QEMU's machine finds in memory: what our own loader puts there, and in place of a firmware a
//! ROM of a hundred bytes that goes from the reset vector straight to the kernel's 64-bit entry point.

use std::arch::x86_64::_rdtsc;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use boot::{AcpiConfig, BootConfig, VirtioSlot, layout};
use guestmem::{GuestMemory, PAGE_SIZE};

use crate::setup::Setup;

/// Registers of the microvm's first virtio transport; the next are [`VIRTIO_STRIDE`] further each.
const VIRTIO_BASE: u64 = 0xfeb0_0000;
const VIRTIO_STRIDE: u64 = 512;
/// Their interrupts: this and the next ones.
const VIRTIO_GSI: u32 = 5;
/// The two disks and the entropy source.
const VIRTIO_DEVICES: usize = 3;

/// Clean pages between two dirty ones that are written along with them.
const GAP: u64 = 16;

pub struct Image {
    pub rom: PathBuf,
    /// Files and the guest-physical addresses of their bytes.
    pub parts: Vec<(PathBuf, u64)>,
}

/// Writes all files into `dir`.
pub fn write(setup: &Setup, cpus: u32, dir: &Path) -> Result<Image> {
    let memory = GuestMemory::new(setup.memory << 20).context("memory to prepare the peer's in")?;
    let devices = VIRTIO_DEVICES + usize::from(!setup.extra.qemu.is_empty());
    let slot = |index: usize| VirtioSlot {
        base: VIRTIO_BASE + index as u64 * VIRTIO_STRIDE,
        size: VIRTIO_STRIDE,
        gsi: VIRTIO_GSI + index as u32,
    };
    let line = format!("{} tsc_early_khz={}", machine::COMMAND_LINE, tsc_khz());
    let mut rng_seed = [0; 32];
    rustix::rand::getrandom(&mut rng_seed, rustix::rand::GetRandomFlags::empty())?;
    let config = BootConfig {
        kernel: &fs::read(&setup.kernel)?,
        initramfs: &fs::read(&setup.initramfs)?,
        command_line: &line,
        rng_seed,
        acpi: AcpiConfig { vcpus: cpus, virtio: (0..devices).map(slot).collect() },
    };
    let loaded = boot::load(&memory, &config)?;
    let rom = dir.join("rom");
    fs::write(&rom, reset_rom(loaded.vcpu.rip, loaded.vcpu.cr3)?)?;
    let mut parts = Vec::new();
    for (first, count) in runs(&memory) {
        let mut bytes = vec![0; (count * PAGE_SIZE) as usize];
        memory.read(first, &mut bytes)?;
        let path = dir.join(format!("{first:x}"));
        fs::write(&path, bytes)?;
        parts.push((path, first));
    }
    Ok(Image { rom, parts })
}

/// Runs of pages that are not zero: address and count.
fn runs(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let used = (0..memory.page_count()).filter(|page| !memory.page_is_zero(*page));
    for gpa in used.map(|page| memory.page_gpa(page)) {
        match runs.last_mut() {
            Some((first, count)) if gpa < *first + (*count + GAP) * PAGE_SIZE => {
                *count = (gpa - *first) / PAGE_SIZE + 1;
            }
            _ => runs.push((gpa, 1)),
        }
    }
    runs
}

/// Ticks of this host's TSC in a millisecond, which is what a guest of TCG reads.
#[allow(unsafe_code)]
fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and it touches nothing.
    let now = || unsafe { _rdtsc() };
    let (begun, first) = (Instant::now(), now());
    std::thread::sleep(Duration::from_millis(50));
    let (ticks, ns) = (now() - first, begun.elapsed().as_nanos() as u64);
    ticks * 1_000_000 / ns.max(1)
}

/// 64 KiB that end at 4 GiB, and are seen again below 1 MiB (the microvm's alias, from 0xf0000).
///
/// Real mode to 32-bit mode with paging off, then the loader's page tables (they map the first GiB, in
/// which the alias is) and long mode (SDM vol. 3, 10.8.5), then the kernel with RSI = boot_params.
fn reset_rom(entry: u64, cr3: u64) -> Result<Vec<u8>> {
    const SIZE: usize = 0x1_0000;
    const ALIAS: u32 = 0xf_0000;
    const START: usize = 0xf000;
    const GDT: usize = 0xe000;
    const GDTR: usize = 0xe040;
    let (entry, cr3) = (u32::try_from(entry)?, u32::try_from(cr3)?);
    let mut rom = vec![0u8; SIZE];
    // Null; 0x08: 32-bit code; 0x10: 64-bit code; 0x18: data, as the boot protocol wants the last two.
    let gdt = [0u64, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    for (i, descriptor) in gdt.iter().enumerate() {
        put(GDT + i * 8, &descriptor.to_le_bytes());
    }
    put(GDTR, &31u16.to_le_bytes());
    put(GDTR + 2, &(ALIAS + GDT as u32).to_le_bytes());

    let mut code = Vec::new();
    code.extend([0x2e, 0x66, 0x0f, 0x01, 0x16]); // lgdt cs:[GDTR]
    code.extend((GDTR as u16).to_le_bytes());
    code.extend([0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0]); // cr0 |= PE
    let far = ALIAS + (START + code.len() + 8) as u32;
    code.extend([0x66, 0xea]); // jmp far 0x08:next
    code.extend(far.to_le_bytes());
    code.extend([0x08, 0x00]);
    code.extend([0xb8, 0x18, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // ds, es, ss = 0x18
    code.extend([0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0]); // cr4 |= PAE
    code.push(0xb8); // cr3 = page tables
    code.extend(cr3.to_le_bytes());
    code.extend([0x0f, 0x22, 0xd8]);
    code.extend([0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32]); // efer |= LME
    code.extend([0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30]);
    code.extend([0x0f, 0x20, 0xc0, 0x0d, 0x22, 0x00, 0x01, 0x80, 0x0f, 0x22, 0xc0]); // cr0 |= PG WP NE MP
    let far = ALIAS + (START + code.len() + 7) as u32;
    code.push(0xea); // jmp far 0x10:next
    code.extend(far.to_le_bytes());
    code.extend([0x10, 0x00]);
    code.push(0xbe); // esi = boot_params
    code.extend((layout::ZERO_PAGE as u32).to_le_bytes());
    code.push(0xb8); // jmp entry
    code.extend(entry.to_le_bytes());
    code.extend([0xff, 0xe0]);
    ensure!(START + code.len() <= 0xfff0, "the reset code is too long");
    put(START, &code);
    // The reset vector: jmp START.
    let back = (START as i32 - 0xfff3) as i16;
    put(0xfff0, &[0xe9, back.to_le_bytes()[0], back.to_le_bytes()[1]]);
    Ok(rom)
}
