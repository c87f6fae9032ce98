//! The boot processor's state at the kernel's 64-bit entry point (Linux:
//! Documentation/arch/x86/boot.rst, "64-bit boot protocol"): paging on with the first GiB mapped
//! to itself, flat segments 0x10 and 0x18, interrupts off, RSI = boot_params.

use arch::x86_64::msr;
use arch::x86_64::paging::pte;
use arch::x86_64::regs::{Cr0, Cr4, Efer, gpr, seg};
use arch::x86_64::state::{Events, LapicState, MpState, Msrs, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;

use crate::layout;
use crate::load::Error;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Execute/read, accessed; S; present; L; G.
const CODE_ATTR: u32 = 0xa09b;
/// Read/write, accessed; S; present; D/B; G.
const DATA_ATTR: u32 = 0xc093;
/// Busy 32/64-bit TSS, present.
const TSS_ATTR: u32 = 0x8b;
/// The segment cannot be used.
const UNUSABLE: u32 = 1 << 16;
/// IA32_PAT at reset (SDM vol. 3, 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Identity-maps the first GiB with 2 MiB pages and writes the GDT.
pub(crate) fn write_tables(memory: &GuestMemory) -> Result<(), Error> {
    let low = |_| Error::NoRoom { what: "the boot tables", need: layout::ACPI_END };
    let (pml4, pdpt, pd) = (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    let link = pte::PRESENT | pte::WRITE;
    memory.write_le(pml4, pdpt | link).map_err(low)?;
    memory.write_le(pdpt, pd | link).map_err(low)?;
    for i in 0..512u64 {
        memory.write_le(pd + i * 8, (i << 21) | link | pte::LARGE).map_err(low)?;
    }
    for (i, descriptor) in [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        memory.write_le(layout::GDT + i as u64 * 8, descriptor).map_err(low)?;
    }
    Ok(())
}

/// The boot processor about to execute the kernel's first instruction at `entry`.
pub(crate) fn entry_state(entry: u64) -> VcpuState {
    let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
    let data = flat(DATA_SELECTOR, DATA_ATTR);
    let mut segments = [data; 6];
    segments[seg::CS] = flat(CODE_SELECTOR, CODE_ATTR);
    let mut registers = [0; 16];
    registers[gpr::RSI] = layout::ZERO_PAGE;
    VcpuState {
        gpr: registers,
        rip: entry,
        rflags: 2,
        seg: segments,
        tr: Segment { selector: 0, base: 0, limit: 0xffff, attr: TSS_ATTR },
        ldtr: Segment { attr: UNUSABLE, ..Segment::default() },
        gdtr: TableReg { base: layout::GDT, limit: 31 },
        idtr: TableReg::default(),
        cr0: (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG).bits(),
        cr2: 0,
        cr3: layout::PAGE_TABLES,
        cr4: Cr4::PAE.bits(),
        cr8: 0,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        fxsave: reset_fxsave(),
        msrs: Msrs {
            efer: (Efer::LME | Efer::LMA).bits(),
            pat: PAT_RESET,
            misc_enable: 1, // fast strings
            apic_base: msr::APIC_DEFAULT_BASE | msr::APIC_BASE_ENABLE | msr::APIC_BASE_BSP,
            ..Msrs::default()
        },
        tsc: 0,
        lapic: LapicState { regs: reset_lapic(), deadline_ticks: None },
        events: Events::default(),
        mp_state: MpState::Runnable,
    }
}

/// FXSAVE image after FNINIT with MXCSR at reset (SDM vol. 1, 8.1.5 and 10.2.3).
fn reset_fxsave() -> Vec<u8> {
    let mut image = vec![0; 512];
    image[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    image[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    image
}

/// Local APIC registers at reset (SDM vol. 3, 11.4.7.1): version, all LVTs masked, spurious
/// vector 0xff with the APIC disabled by software.
fn reset_lapic() -> Vec<u8> {
    let mut regs = vec![0; 1024];
    let mut put = |at: usize, value: u32| regs[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0x30, 0x0005_0014);
    put(0xe0, u32::MAX);
    put(0xf0, 0xff);
    for lvt in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        put(lvt, 1 << 16);
    }
    regs
}
