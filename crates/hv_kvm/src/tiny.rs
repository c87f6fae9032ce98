//! Tiny guests: flat 64-bit code of a few bytes with everything around it that a processor needs, as a
//! neutral state. For the probe, the self-test and tests; any engine can run them.
//!
//! The first GiB and the one that holds [`DEVICE`] are mapped one to one, for both rings. Every vector
//! has a handler that reports it with OUT to [`FAULT_PORT`].

use arch::x86_64::msr::{APIC_BASE_BSP, APIC_BASE_ENABLE, APIC_BASE_X2APIC, APIC_DEFAULT_BASE};
use arch::x86_64::paging::pte;
use arch::x86_64::regs::{Cr0, Cr4, Efer, Rflags, gpr, seg};
use arch::x86_64::state::{LapicState, Msrs, Segment, TableReg, VcpuState};
use guestmem::GuestMemory;
use hv::Error;

use crate::abi::ENGINE;

/// RAM of a tiny guest in bytes.
pub const SIZE: u64 = 1 << 20;
/// Where the program begins.
pub const CODE: u64 = 0x8000;
/// Free memory for it.
pub const DATA: u64 = 0x2_0000;
/// Top of the program's stack.
pub const STACK: u64 = 0x1_f000;
/// An address that is not RAM.
pub const DEVICE: u64 = 0xd000_0000;
/// Where handlers say their vector, in AL.
pub const FAULT_PORT: u16 = 0xee;
/// By convention a program ends with these bytes: `mov [DEVICE], eax`. A store works at every privilege
/// level; OUT at level 3 depends on IOPL, which a software KVM was seen to ignore.
pub const DONE: [u8; 9] = [0xa3, 0, 0, 0, 0xd0, 0, 0, 0, 0];

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD_LOW: u64 = 0x3000;
const PD_DEVICE: u64 = 0x4000;
const GDT: u64 = 0x5000;
const TSS: u64 = 0x5800;
const IDT: u64 = 0x6000;
const HANDLERS: u64 = 0x1_0000;
const RING0_STACK: u64 = 0x1_e000;

const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
const DATA3: u16 = 0x23;
const CODE3: u16 = 0x2b;
const TASK: u16 = 0x30;

fn wrong(error: &dyn std::fmt::Display) -> Error {
    Error::BadState { engine: ENGINE, what: format!("a tiny guest does not fit: {error}") }
}

/// Memory with `program` at [`CODE`].
///
/// # Errors
/// No address space; a program that reaches beyond the memory.
pub fn memory(program: &[u8]) -> Result<GuestMemory, Error> {
    let memory = GuestMemory::new(SIZE).map_err(|e| wrong(&e))?;
    lay(&memory).map_err(|e| wrong(&e))?;
    memory.write(CODE, program).map_err(|e| wrong(&e))?;
    Ok(memory)
}

fn lay(memory: &GuestMemory) -> Result<(), guestmem::Error> {
    let link = pte::PRESENT | pte::WRITE | pte::USER | pte::ACCESSED;
    memory.write_le(PML4, PDPT | link)?;
    memory.write_le(PDPT, PD_LOW | link)?;
    memory.write_le(PDPT + 3 * 8, PD_DEVICE | link)?;
    for i in 0..512u64 {
        let page = link | pte::DIRTY | pte::LARGE;
        memory.write_le(PD_LOW + i * 8, (i << 21) | page)?;
        memory.write_le(PD_DEVICE + i * 8, (3 << 30 | i << 21) | page)?;
    }
    memory.write_le(GDT + 0x08, 0x00af_9b00_0000_ffffu64)?;
    memory.write_le(GDT + 0x10, 0x00cf_9300_0000_ffffu64)?;
    memory.write_le(GDT + 0x20, 0x00cf_f300_0000_ffffu64)?;
    memory.write_le(GDT + 0x28, 0x00af_fb00_0000_ffffu64)?;
    memory.write_le(GDT + 0x30, 0x0000_8b00_0000_0067 | TSS << 16)?;
    memory.write_le(TSS + 4, RING0_STACK)?;
    // No permission map: it would begin after the segment's end.
    memory.write_le(TSS + 0x66, 0x68u16)?;
    for vector in 0..=255u8 {
        let handler = HANDLERS + u64::from(vector) * 16;
        // mov al, vector; out FAULT_PORT, al; hlt
        memory.write(handler, &[0xb0, vector, 0xe6, FAULT_PORT as u8, 0xf4])?;
        let gate =
            (handler & 0xffff) | u64::from(CODE0) << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48;
        memory.write_le(IDT + u64::from(vector) * 16, gate)?;
    }
    Ok(())
}

/// Address of a vector's handler.
pub fn handler(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * 16
}

/// Replaces the handler of a vector by code of at most 16 bytes.
///
/// # Errors
/// Code that is too long.
pub fn set_handler(memory: &GuestMemory, vector: u8, code: &[u8]) -> Result<(), Error> {
    if code.len() > 16 {
        return Err(wrong(&"a handler of more than 16 bytes"));
    }
    memory.write(HANDLERS + u64::from(vector) * 16, code).map_err(|e| wrong(&e))
}

/// The processor at [`CODE`], at privilege level 0 or 3, interrupts off at 0 and on at 3, local APIC on in
/// x2APIC mode with everything masked.
pub fn state(cpl: u8) -> VcpuState {
    let user = cpl == 3;
    let (code, data) = if user { (CODE3, DATA3) } else { (CODE0, DATA0) };
    let dpl = if user { 3 << 5 } else { 0 };
    let flat = |selector: u16, attr: u32| Segment { selector, base: 0, limit: 0xffff_ffff, attr: attr | dpl };
    let mut segments = [flat(data, 0xc093); 6];
    segments[seg::CS] = flat(code, 0xa09b);
    let mut registers = [0; 16];
    registers[gpr::RSP] = STACK;
    let flags = if user { Rflags::ONE | Rflags::IF } else { Rflags::ONE };
    let mut fxsave = vec![0; 512];
    fxsave[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    fxsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    fxsave[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    let cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::PG;
    VcpuState {
        gpr: registers,
        rip: CODE,
        rflags: flags.bits(),
        seg: segments,
        tr: Segment { selector: TASK, base: TSS, limit: 0x67, attr: 0x8b },
        ldtr: Segment { selector: 0, base: 0, limit: 0xffff, attr: 0x82 },
        gdtr: TableReg { base: GDT, limit: 0x3f },
        idtr: TableReg { base: IDT, limit: 0xfff },
        cr0: cr0.bits(),
        cr2: 0,
        cr3: PML4,
        cr4: (Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits(),
        cr8: 0,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        fxsave,
        msrs: msrs(),
        tsc: 0,
        lapic: LapicState { regs: lapic(), deadline_ticks: None },
        events: Default::default(),
        mp_state: Default::default(),
    }
}

fn msrs() -> Msrs {
    Msrs {
        efer: (Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE).bits(),
        pat: 0x0007_0406_0007_0406,
        misc_enable: 1,
        apic_base: APIC_DEFAULT_BASE | APIC_BASE_BSP | APIC_BASE_ENABLE | APIC_BASE_X2APIC,
        ..Msrs::default()
    }
}

/// Offsets: SDM vol. 3, table 11-1.
fn lapic() -> Vec<u8> {
    let mut page = vec![0; 1024];
    let mut put = |at: usize, value: u32| page[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0x30, 0x0005_0014);
    // Logical id of the x2APIC with id 0.
    put(0xd0, 1);
    put(0xe0, u32::MAX);
    put(0xf0, 0x1ff);
    for entry in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        put(entry, 0x1_0000);
    }
    page
}
