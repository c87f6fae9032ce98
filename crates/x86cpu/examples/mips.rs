//! Instructions per second of the interpreter and of translated code on a mix of integer code: recursion (fib 24), a sieve,
//! a bitwise CRC, an insertion sort, indirect calls. 64-bit mode, identity paging, no devices.
//!
//! `cargo run --release -p x86cpu --example mips`

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use arch::x86_64::cpuid::{for_vcpu, portable};
use arch::x86_64::regs::{gpr, seg};
use arch::x86_64::state::Segment;
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::lapic::ApicBus;
use x86cpu::{Cpu, CpuConfig, Engine, Stop};

/// Compiled C (`gcc -O2`, general registers only) at 0x10000; leaves a checksum in RAX and halts.
const MIX: &str = concat!(
    "53bf18000000e8650000004989c3e8ed0100004901c3e895010000ba0000180089c3b801000000660f1f840000000000",
    "69c00d6619004883c204055ff36e3c8942fc4881faa00f180075e5e8f00000008b0425000018004c01d84801c3e87e00",
    "00004801d8f45bc30f1f8400000000004883ff01743241544989fc5531ed534889fb488d7bff4883eb02e8e1ffffff48",
    "01c54883fb0177ea4183e4015b498d042c5d415cc30f1f00b801000000c3669048b8157c4a7fb979379e480fafc7c390",
    "4889f848c1e00d4831f8c30f1f4400004889f848c1e8074801f8c30f1f44000053bf01000000bb400d03004883ec2048",
    "c70424b000010048c7442408c000010048c7442410d000010048c7442418b0000100660f1f4400004889f848c1e80583",
    "e003488b04c4ffd04889c783eb0175e84883c4205bc3662e0f1f84000000000041b90400180041ba010000004531c090",
    "4c89d6418b39498d41fc4c29c648c1e602eb130f1f4400004883e8048911483dfcff1700742a8b10488d0c0639d772e8",
    "4983c00189394983c2014983c1044981f8e703000075b9c30f1f840000000000b900001800ebd9660f1f840000000000",
    "bf00001000b8ffffffff660f1f4400000fb61731d0ba08000000660f1f44000089c6d1e889c183e60181f12083b8ed85",
    "f60f45c183ea0175e74883c7014881ff3075100075cac3660f1f840000000000b8000010000f1f00c600014883c00148",
    "3d400d130075f1b904000000be020000004531c00f1f400080be0000100000751783c1024883c60181f9801a060075e8",
    "4c89c0c30f1f40004983c00181f93f0d030077dd89f789c80f1f84000000000089c201f8c68200001000003d3f0d0300",
    "76ee4883c60183c102ebad",
);
const CODE: u64 = 0x1_0000;
const TABLES: u64 = 0x1000;

fn main() -> Result<(), Box<dyn Error>> {
    let memory = GuestMemory::new(4 << 20)?;
    let digits = MIX.as_bytes();
    let bytes: Result<Vec<u8>, _> =
        digits.chunks(2).map(|p| u8::from_str_radix(&String::from_utf8_lossy(p), 16)).collect();
    memory.write(CODE, &bytes?)?;
    memory.write_le(TABLES, (TABLES + 0x1000) | 3)?;
    memory.write_le(TABLES + 0x1000, (TABLES + 0x2000) | 3)?;
    for i in 0..2u64 {
        memory.write_le(TABLES + 0x2000 + 8 * i, (i << 21) | 0x83)?;
    }
    let cpuid = for_vcpu(&portable(1, 1_000_000), 0).into();
    let clock = Arc::new(Clock::new(1_000_000));
    let mut cpu = Cpu::new(CpuConfig { memory, id: 0, cpuid, clock, apic_bus: Arc::new(ApicBus::new(1)) });
    let mut state = cpu.save();
    state.seg = [Segment { selector: 0x10, base: 0, limit: u32::MAX, attr: 0xc093 }; 6];
    state.seg[seg::CS] = Segment { selector: 8, base: 0, limit: u32::MAX, attr: 0xa09b };
    state.cr0 = 0x8001_0031;
    state.cr3 = TABLES;
    state.cr4 = 0x620;
    state.msrs.efer = 0x500;
    state.rip = CODE;
    state.rflags = 2;
    state.gpr[gpr::RSP] = 0x8_0000;
    let engines = [("interpreter", Engine::Interpreter), ("translated", Engine::default())];
    for (name, round) in engines.iter().flat_map(|e| (0..5).map(move |r| (e, r))) {
        let (name, engine) = name;
        if round == 0 {
            cpu.set_engine(*engine);
        }
        cpu.restore(&state)?;
        let (from, start) = (cpu.instructions(), Instant::now());
        let stop = cpu.run(u64::MAX);
        let (count, time) = (cpu.instructions() - from, start.elapsed());
        if stop != Stop::Halt {
            return Err(format!("stopped with {stop:?}").into());
        }
        let mips = count as f64 / time.as_secs_f64() / 1e6;
        println!(
            "{name} {round}: {count} instructions, {time:.1?}: {mips:.1} MIPS, sum {:#x}",
            cpu.save().gpr[gpr::RAX]
        );
    }
    println!("{:?}", cpu.jit_counters());
    Ok(())
}
