//! Boots a Linux kernel in the barest machine: RAM, one vCPU, an output-only serial port, no ACPI.
//! A development harness: finds missing instructions, measures, and compares the interpreter with
//! translated code.
//!
//! `cargo run --release -p x86cpu --example boot_kernel -- [--interpreter | --lockstep N] VMLINUX
//! [INITRAMFS [COMMAND LINE]]`
//!
//! `--lockstep N`: two machines, one of them interpreted, compared every few (at most N) instructions.

mod lockstep;
mod setup;

use std::error::Error;
use std::time::{Duration, Instant};

use setup::{Guest, Serial};
use x86cpu::{Cpu, Engine, Stop};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut engine = Engine::default();
    let mut longest = 0;
    match args.first().map(String::as_str) {
        Some("--interpreter") => {
            engine = Engine::Interpreter;
            args.remove(0);
        }
        Some("--lockstep") => {
            longest = args.get(1).ok_or("how many instructions?")?.parse()?;
            args.drain(..2);
        }
        _ => {}
    }
    let guest = Guest::from_args(&args)?;
    if longest > 0 {
        return lockstep::run(&guest, longest);
    }
    let (_, clock, mut cpu) = guest.build(false)?;
    cpu.set_engine(engine);
    clock.resume();
    run(cpu)
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
            Stop::PioWrite { .. }
            | Stop::MmioWrite { .. }
            | Stop::IoapicEoi { .. }
            | Stop::Poll
            | Stop::Alone => {}
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
    eprintln!("[{:?}]", cpu.jit_counters());
    eprintln!("[{count} instructions in {busy:.2?}: {:.1} MIPS]", count as f64 / busy.as_secs_f64() / 1e6);
    Ok(())
}
