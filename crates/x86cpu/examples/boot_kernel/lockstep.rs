//! Two machines from the same kernel: one interpreted, one translated. Time is the number of
//! instructions. After every slice their states must be equal, and now and then their memories.

use std::error::Error;
use std::sync::Arc;

use arch::x86_64::state::VcpuState;
use guestmem::GuestMemory;
use x86cpu::clock::Clock;
use x86cpu::{Cpu, Engine, Stop};

use crate::setup::{Guest, Serial};

/// Nanoseconds that pass while the guest waits.
const IDLE_NS: u64 = 100_000;
/// Slices between two comparisons of all memory.
const WHOLE: u64 = 20_000;
/// Idle turns in a row after which the guest is done.
const DONE: u32 = 20_000;

struct Side {
    memory: GuestMemory,
    clock: Arc<Clock>,
    cpu: Cpu,
    serial: Serial,
}

impl Side {
    fn new(guest: &Guest, engine: Engine, silent: bool) -> Result<Self, Box<dyn Error>> {
        let (memory, clock, mut cpu) = guest.build(true)?;
        cpu.set_engine(engine);
        Ok(Self { memory, clock, cpu, serial: Serial::new(silent) })
    }

    /// Runs a slice, devices included; what it stopped for at last.
    fn slice(&mut self, n: u64) -> Stop {
        let end = self.cpu.instructions() + n;
        loop {
            let stop = self.cpu.run(end - self.cpu.instructions());
            match stop {
                Stop::PioRead { port: port @ 0x3f8..=0x3ff, .. } => {
                    self.cpu.reply(u64::from(self.serial.read(usize::from(port - 0x3f8))));
                }
                Stop::PioWrite { port: port @ 0x3f8..=0x3ff, value, .. } => {
                    self.serial.write(usize::from(port - 0x3f8), value as u8);
                }
                Stop::PioRead { .. } | Stop::MmioRead { .. } => self.cpu.reply(u64::MAX),
                Stop::PioWrite { .. } | Stop::MmioWrite { .. } | Stop::IoapicEoi { .. } | Stop::Poll => {}
                stop => return stop,
            }
        }
    }
}

/// What differs between two states, as text.
fn differences(a: &VcpuState, b: &VcpuState) -> String {
    let mut out = String::new();
    for i in 0..16 {
        if a.gpr[i] != b.gpr[i] {
            out += &format!("  r{i}: {:#x} {:#x}\n", a.gpr[i], b.gpr[i]);
        }
    }
    for (name, x, y) in [("rip", a.rip, b.rip), ("rflags", a.rflags, b.rflags), ("cr2", a.cr2, b.cr2)] {
        if x != y {
            out += &format!("  {name}: {x:#x} {y:#x}\n");
        }
    }
    if out.is_empty() && a != b {
        out += &format!("{a:?}\n{b:?}\n");
    }
    out
}

fn compare_memory(a: &GuestMemory, b: &GuestMemory) -> Result<(), String> {
    let (mut x, mut y) = ([0; 4096], [0; 4096]);
    for page in 0..a.page_count() {
        a.read_page(page, &mut x);
        b.read_page(page, &mut y);
        if let Some(at) = (0..4096).find(|i| x[*i] != y[*i]) {
            return Err(format!("memory differs at {:#x}", a.page_gpa(page) + at as u64));
        }
    }
    Ok(())
}

/// # Errors
/// What differs, and after which instructions.
pub fn run(guest: &Guest, longest: u64) -> Result<(), Box<dyn Error>> {
    let mut one = Side::new(guest, Engine::Interpreter, true)?;
    let mut two = Side::new(guest, Engine::Jit { after: 4, longest: 64 }, false)?;
    let (mut random, mut slices, mut idle) = (0x2545_f491_4f6c_dd1du64, 0u64, 0);
    while idle < DONE {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let n = 1 + random % longest;
        let before = one.cpu.save();
        let stops = (one.slice(n), two.slice(n));
        let counts = (one.cpu.instructions(), two.cpu.instructions());
        let (a, b) = (one.cpu.save(), two.cpu.save());
        let text = differences(&a, &b);
        if !text.is_empty() || stops.0 != stops.1 || counts.0 != counts.1 {
            let from = before.rip;
            return Err(format!("slice of {n} from {from:#x}: {stops:?} {counts:?}\n{text}").into());
        }
        slices += 1;
        if slices.is_multiple_of(WHOLE) {
            compare_memory(&one.memory, &two.memory)?;
        }
        let ns = match stops.0 {
            Stop::Budget => n,
            Stop::Halt => IDLE_NS,
            stop => return Err(format!("stopped with {stop:?}").into()),
        };
        idle = if stops.0 == Stop::Halt { idle + 1 } else { 0 };
        one.clock.advance(ns);
        two.clock.advance(ns);
    }
    compare_memory(&one.memory, &two.memory)?;
    eprintln!("[{slices} slices, {} instructions: equal]", one.cpu.instructions());
    eprintln!("[{:?}]", two.cpu.jit_counters());
    Ok(())
}
