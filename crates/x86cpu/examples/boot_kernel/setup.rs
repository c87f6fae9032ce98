//! A machine with a kernel in it: memory, boot parameters, the boot processor, a serial port.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use arch::x86_64::cpuid::{CpuidLeaf, for_vcpu, portable};
use arch::x86_64::regs::{gpr, seg};
use arch::x86_64::state::{Segment, TableReg};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig};

const MEMORY: u64 = 256 << 20;
const BOOT_PARAMS: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const PAGE_TABLES: u64 = 0x9000;
const GDT: u64 = 0x500;
const COMMAND: &str = "console=ttyS0 earlyprintk=serial,ttyS0,115200,keep noreplace-smp reboot=t panic=-1 loglevel=7 tsc=reliable";
const TSC_KHZ: u32 = 1_000_000;

/// What the command line asks for.
pub struct Guest {
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    command_line: String,
}

impl Guest {
    /// From `VMLINUX [INITRAMFS [COMMAND LINE]]`.
    pub fn from_args(args: &[String]) -> Result<Self, Box<dyn Error>> {
        let kernel = std::fs::read(args.first().ok_or("which vmlinux?")?)?;
        let initramfs = match args.get(1) {
            Some(path) if !path.is_empty() => std::fs::read(path)?,
            _ => Vec::new(),
        };
        let command_line = args.get(2).map_or(COMMAND, String::as_str).to_owned();
        Ok(Self { kernel, initramfs, command_line })
    }

    /// Memory, clock (held) and boot processor. `steady`: without what takes time or chance from the host.
    pub fn build(&self, steady: bool) -> Result<(GuestMemory, Arc<Clock>, Cpu), Box<dyn Error>> {
        let memory = GuestMemory::new(MEMORY)?;
        let entry = load_elf(&memory, &self.kernel)?;
        let more = if steady { " tsc_early_khz=1000000" } else { "" };
        boot_parameters(&memory, &self.initramfs, &format!("{}{more}", self.command_line))?;
        let clock = Arc::new(Clock::new(TSC_KHZ));
        let cpu = boot_processor(&memory, entry, &clock, steady)?;
        Ok((memory, clock, cpu))
    }
}

/// Without KVM's clock and RDRAND.
fn steady_cpuid(leaves: Vec<CpuidLeaf>) -> Vec<CpuidLeaf> {
    let mut out: Vec<CpuidLeaf> = leaves.into_iter().filter(|l| l.leaf >> 28 != 4).collect();
    for leaf in out.iter_mut().filter(|l| l.leaf == 1) {
        leaf.ecx &= !(1 << 30);
    }
    out
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> Result<u64, Box<dyn Error>> {
    let raw = bytes.get(at..at + N).ok_or("the kernel file is cut off")?;
    Ok(raw.iter().rev().fold(0, |v, b| (v << 8) | u64::from(*b)))
}

/// Copies the PT_LOAD segments to their physical addresses; returns the entry point.
fn load_elf(memory: &GuestMemory, file: &[u8]) -> Result<u64, Box<dyn Error>> {
    let table = word::<8>(file, 32)? as usize;
    for i in 0..word::<2>(file, 56)? as usize {
        let at = table + i * 56;
        if word::<4>(file, at)? != 1 {
            continue;
        }
        let (offset, size) = (word::<8>(file, at + 8)? as usize, word::<8>(file, at + 32)? as usize);
        let bytes = file.get(offset..offset + size).ok_or("the kernel file is cut off")?;
        memory.write(word::<8>(file, at + 24)?, bytes)?;
    }
    word::<8>(file, 24)
}

/// The "zero page" (Linux: Documentation/arch/x86/zero-page.rst).
fn boot_parameters(memory: &GuestMemory, initramfs: &[u8], command_line: &str) -> Result<(), Box<dyn Error>> {
    let p = BOOT_PARAMS;
    memory.write(COMMAND_LINE, command_line.as_bytes())?;
    memory.write_le::<u16>(p + 0x1fe, 0xaa55)?;
    memory.write(p + 0x202, b"HdrS")?;
    memory.write_le::<u16>(p + 0x206, 0x20c)?;
    memory.write_le::<u8>(p + 0x210, 0xff)?;
    memory.write_le::<u8>(p + 0x211, 1)?;
    memory.write_le::<u32>(p + 0x228, COMMAND_LINE as u32)?;
    memory.write_le::<u32>(p + 0x238, command_line.len() as u32)?;
    if !initramfs.is_empty() {
        let at = (MEMORY - initramfs.len() as u64) & !0xfff;
        memory.write(at, initramfs)?;
        memory.write_le::<u32>(p + 0x218, at as u32)?;
        memory.write_le::<u32>(p + 0x21c, initramfs.len() as u32)?;
    }
    let map = [(0u64, 0x9_fc00u64, 1u32), (0x9_fc00, 0x6_0400, 2), (0x10_0000, MEMORY - 0x10_0000, 1)];
    memory.write_le::<u8>(p + 0x1e8, map.len() as u8)?;
    for (i, (start, size, kind)) in map.iter().enumerate() {
        let at = p + 0x2d0 + 20 * i as u64;
        memory.write_le(at, *start)?;
        memory.write_le(at + 8, *size)?;
        memory.write_le(at + 16, *kind)?;
    }
    Ok(())
}

/// A vCPU as the 64-bit boot protocol wants it.
fn boot_processor(
    memory: &GuestMemory,
    entry: u64,
    clock: &Arc<Clock>,
    steady: bool,
) -> Result<Cpu, Box<dyn Error>> {
    memory.write_le(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 3)?;
    memory.write_le(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 3)?;
    for i in 0..512u64 {
        memory.write_le(PAGE_TABLES + 0x2000 + 8 * i, (i << 21) | 0x83)?;
    }
    memory.write_le(GDT + 0x10, 0x00af_9b00_0000_ffffu64)?;
    memory.write_le(GDT + 0x18, 0x00cf_9300_0000_ffffu64)?;
    let cpuid = for_vcpu(&portable(1, TSC_KHZ), 0);
    let cpuid = if steady { steady_cpuid(cpuid) } else { cpuid }.into();
    let config = CpuConfig {
        memory: memory.clone(),
        id: 0,
        cpuid,
        clock: Arc::clone(clock),
        apic_bus: Arc::new(ApicBus::new(1)),
    };
    let mut cpu = Cpu::new(config);
    let mut state = cpu.save();
    let flat = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr };
    state.seg = [flat(0x18, 0xc093); 6];
    state.seg[seg::CS] = flat(0x10, 0xa09b);
    state.gdtr = TableReg { base: GDT, limit: 0x1f };
    state.cr0 = 0x8000_0031;
    state.cr3 = PAGE_TABLES;
    state.cr4 = 0x20;
    state.msrs.efer = 0x500;
    state.rip = entry;
    state.rflags = 2;
    state.gpr[gpr::RSI] = BOOT_PARAMS;
    cpu.restore(&state).map_err(|e| format!("{e:?}"))?;
    Ok(cpu)
}

/// A 16550 that only sends.
#[derive(Default)]
pub struct Serial {
    /// Nobody sees what is sent.
    pub silent: bool,
    regs: [u8; 8],
    divisor: bool,
}

impl Serial {
    pub fn new(silent: bool) -> Self {
        Self { silent, ..Self::default() }
    }

    pub fn write(&mut self, register: usize, value: u8) {
        if register == 3 {
            self.divisor = value & 0x80 != 0;
        }
        if register == 0 && !self.divisor {
            if self.silent {
                return;
            }
            let mut out = std::io::stdout();
            let _ = out.write_all(&[value]).and_then(|()| out.flush());
            return;
        }
        if register == 0 || (register == 1 && self.divisor) {
            return;
        }
        self.regs[register & 7] = value;
    }

    pub fn read(&self, register: usize) -> u8 {
        match register {
            0 => 0,
            2 => 1,
            5 => 0x60,
            6 if self.regs[4] & 0x10 != 0 => (self.regs[4] & 0xc) << 2 | (self.regs[4] & 3) << 6,
            6 => 0xb0,
            r => self.regs[r & 7],
        }
    }
}
