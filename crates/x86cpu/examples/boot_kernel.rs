//! Boots a Linux kernel in the barest machine: RAM, one vCPU, an output-only serial port, no ACPI.
//! A development harness: finds missing instructions and measures the interpreter.
//!
//! `cargo run --release -p x86cpu --example boot_kernel -- VMLINUX [INITRAMFS [COMMAND LINE]]`

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::x86_64::cpuid::{for_vcpu, portable};
use arch::x86_64::regs::{gpr, seg};
use arch::x86_64::state::{Segment, TableReg};
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Stop};

const MEMORY: u64 = 256 << 20;
const BOOT_PARAMS: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const PAGE_TABLES: u64 = 0x9000;
const GDT: u64 = 0x500;
const TSC_KHZ: u32 = 1_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let kernel = args.get(1).ok_or("which vmlinux?")?;
    let default = "console=ttyS0 earlyprintk=serial,ttyS0,115200,keep noreplace-smp reboot=t panic=-1 loglevel=7 tsc=reliable";
    let command_line = args.get(3).map_or(default, String::as_str);
    let memory = GuestMemory::new(MEMORY)?;
    let entry = load_elf(&memory, &std::fs::read(kernel)?)?;
    let initramfs = match args.get(2) {
        Some(path) if !path.is_empty() => std::fs::read(path)?,
        _ => Vec::new(),
    };
    boot_parameters(&memory, &initramfs, command_line)?;
    let cpu = boot_processor(&memory, entry)?;
    run(cpu)
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
fn boot_processor(memory: &GuestMemory, entry: u64) -> Result<Cpu, Box<dyn Error>> {
    memory.write_le(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 3)?;
    memory.write_le(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 3)?;
    for i in 0..512u64 {
        memory.write_le(PAGE_TABLES + 0x2000 + 8 * i, (i << 21) | 0x83)?;
    }
    memory.write_le(GDT + 0x10, 0x00af_9b00_0000_ffffu64)?;
    memory.write_le(GDT + 0x18, 0x00cf_9300_0000_ffffu64)?;
    let cpuid = for_vcpu(&portable(1, TSC_KHZ), 0).into();
    let config = CpuConfig {
        memory: memory.clone(),
        id: 0,
        cpuid,
        clock: Arc::new(Clock::new(TSC_KHZ)),
        apic_bus: Arc::new(ApicBus::new(1)),
    };
    config.clock.resume();
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
struct Serial {
    regs: [u8; 8],
    divisor: bool,
}

impl Serial {
    fn write(&mut self, register: usize, value: u8) {
        if register == 3 {
            self.divisor = value & 0x80 != 0;
        }
        if register == 0 && !self.divisor {
            let mut out = std::io::stdout();
            let _ = out.write_all(&[value]).and_then(|()| out.flush());
            return;
        }
        if register == 0 || (register == 1 && self.divisor) {
            return;
        }
        self.regs[register & 7] = value;
    }

    fn read(&self, register: usize) -> u8 {
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

fn run(mut cpu: Cpu) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut serial = Serial::default();
    let mut halted = Duration::ZERO;
    let mut idle = Duration::ZERO;
    loop {
        let stop = cpu.run(50_000_000);
        if !matches!(stop, Stop::Halt | Stop::Poll) {
            idle = Duration::ZERO;
        }
        match stop {
            Stop::PioRead { port: port @ 0x3f8..=0x3ff, .. } => {
                cpu.reply(u64::from(serial.read(usize::from(port - 0x3f8))));
            }
            Stop::PioWrite { port: port @ 0x3f8..=0x3ff, value, .. } => {
                serial.write(usize::from(port - 0x3f8), value as u8);
            }
            Stop::PioRead { .. } | Stop::MmioRead { .. } => cpu.reply(u64::MAX),
            Stop::PioWrite { .. } | Stop::MmioWrite { .. } | Stop::IoapicEoi { .. } | Stop::Poll => {}
            Stop::Budget => {
                if std::env::var_os("TRACE").is_some() {
                    eprintln!(
                        "[{:?} at {:.2?}, {} M instructions]",
                        cpu,
                        start.elapsed(),
                        cpu.instructions() / 1_000_000
                    );
                }
                if start.elapsed() > Duration::from_secs(120) {
                    break;
                }
            }
            Stop::Halt => {
                let from = Instant::now();
                std::thread::sleep(Duration::from_micros(200));
                halted += from.elapsed();
                idle += from.elapsed();
                if idle > Duration::from_secs(5) {
                    eprintln!("[idle]");
                    break;
                }
            }
            Stop::TripleFault | Stop::Unsupported(_) => {
                eprintln!("[{stop:?}: {cpu:?}]");
                break;
            }
        }
    }
    let busy = start.elapsed().saturating_sub(halted);
    let count = cpu.instructions();
    eprintln!("[{count} instructions in {busy:.2?}: {:.1} MIPS]", count as f64 / busy.as_secs_f64() / 1e6);
    Ok(())
}
