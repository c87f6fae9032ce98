//! `smolvm doctor --selftest`: a running computation moved between engines, in every pairing.
//!
//! Ring 3 code computes in SSE2 registers and stores to a device eight times on the way. At each of
//! these stores the machine is saved, another partition is made on the next engine, and it goes on
//! there, with a timer armed all the while. The result must be the one that the host computes.

use std::time::{Duration, Instant};

use arch::x86_64::cpuid::portable;
use arch::x86_64::state::VcpuState;
use guestmem::GuestMemory;
use hv::{ClockState, EngineKind, Error, Exit, Partition, PartitionConfig};
use serde::Serialize;

use crate::kick::Watchdog;
use crate::tiny::{self, DATA, DEVICE, DONE};

/// Makes a partition on one engine.
pub type Factory<'a> = &'a dyn Fn(PartitionConfig) -> Result<Box<dyn Partition>, Error>;

/// One pairing of engines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leg {
    pub from: EngineKind,
    pub to: EngineKind,
    pub passed: bool,
    /// What went wrong; empty when nothing did.
    pub failure: String,
    /// Times that the machine moved.
    pub moves: u32,
    /// Medians in microseconds: settling and saving; making a partition and restoring.
    pub save_us: u64,
    pub restore_us: u64,
}

/// The whole matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelfTest {
    pub passed: bool,
    pub tsc_khz: u32,
    pub legs: Vec<Leg>,
}

/// Moves the computation between every ordered pair of `engines`, also each with itself; all of them
/// with a guest TSC of `tsc_khz`. The template check is forced. Takes less than a second a pair.
pub fn run(engines: &[(EngineKind, Factory<'_>)], tsc_khz: u32) -> SelfTest {
    let mut legs = Vec::new();
    for (from, make_from) in engines {
        for (to, make_to) in engines {
            let mut travel = Travel { khz: tsc_khz, saves: Vec::new(), restores: Vec::new(), moves: 0 };
            let result = travel.run([*make_from, *make_to]);
            legs.push(Leg {
                from: *from,
                to: *to,
                passed: result.is_ok(),
                failure: result.err().unwrap_or_default(),
                moves: travel.moves,
                save_us: median(travel.saves),
                restore_us: median(travel.restores),
            });
        }
    }
    SelfTest { passed: legs.iter().all(|leg| leg.passed), tsc_khz, legs }
}

fn median(mut times: Vec<Duration>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, |time| time.as_micros() as u64)
}

const ROUNDS: u32 = 4096;
/// Rounds between two moves.
const STRIDE: u32 = 512;
/// The store that asks for a move.
const CHECKPOINT: u64 = DEVICE + 8;
/// Timer interrupts, as the guest counts them.
const TICKS: u64 = DATA + 0x100;
const TIMER_VECTOR: u8 = 0x50;
/// When the timer is due, in milliseconds of guest time.
const DUE_MS: u64 = 200;
/// Longer than this no part of it takes, however loaded the host is.
const PATIENCE: Duration = Duration::from_secs(20);
/// The recurrence: value = value * FACTOR + TERM.
const FACTOR: f64 = 0.999_983;
const TERM: f64 = 0.125;

fn program() -> Vec<u8> {
    // mov ecx, ROUNDS
    let mut code = vec![0xb9];
    code.extend(ROUNDS.to_le_bytes());
    let start = code.len();
    // mulpd xmm0, xmm1; addpd xmm0, xmm2; sqrtpd xmm3, xmm0; addpd xmm4, xmm3; paddq xmm5, xmm0
    code.extend([0x66, 0x0f, 0x59, 0xc1, 0x66, 0x0f, 0x58, 0xc2, 0x66, 0x0f, 0x51, 0xd8]);
    code.extend([0x66, 0x0f, 0x58, 0xe3, 0x66, 0x0f, 0xd4, 0xe8]);
    // test ecx, STRIDE - 1; jnz +9; mov [CHECKPOINT], eax
    code.extend([0xf7, 0xc1]);
    code.extend((STRIDE - 1).to_le_bytes());
    code.extend([0x75, 9, 0xa3]);
    code.extend(CHECKPOINT.to_le_bytes());
    // dec ecx; jnz start
    code.extend([0xff, 0xc9]);
    let back = start as i64 - (code.len() as i64 + 2);
    code.extend([0x75, back as i8 as u8]);
    // 1: cmp dword [TICKS], 0; je 1b
    code.extend([0x83, 0x3c, 0x25, 0, 1, 2, 0, 0, 0x74, 0xf6]);
    code.extend(DONE);
    code
}

/// inc qword [TICKS]; iretq
const TIMER_HANDLER: [u8; 10] = [0x48, 0xff, 0x04, 0x25, 0, 1, 2, 0, 0x48, 0xcf];

/// What the host makes of it: value, sum of roots, sum of bit patterns.
fn expected() -> [u64; 3] {
    let (mut value, mut sum, mut bits) = (1.0f64, 0.0f64, 0u64);
    for _ in 0..ROUNDS {
        value = value * FACTOR + TERM;
        sum += value.sqrt();
        bits = bits.wrapping_add(value.to_bits());
    }
    [value.to_bits(), sum.to_bits(), bits]
}

/// Where XMM register `number` is in an FXSAVE image (SDM vol. 1, 10.5.1).
fn xmm_at(number: usize) -> usize {
    160 + 16 * number
}

fn start(khz: u32) -> VcpuState {
    let mut state = tiny::state(3);
    for (number, value) in [(0, 1.0f64), (1, FACTOR), (2, TERM)] {
        for half in [xmm_at(number), xmm_at(number) + 8] {
            state.fxsave[half..half + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    // LVT timer: TSC-deadline mode.
    let timer = 2 << 17 | u32::from(TIMER_VECTOR);
    state.lapic.regs[0x320..0x324].copy_from_slice(&timer.to_le_bytes());
    state.lapic.deadline_ticks = Some(u64::from(khz) * DUE_MS);
    state
}

fn result(state: &VcpuState) -> [u64; 3] {
    [0, 4, 5].map(|number| {
        let bytes = state.fxsave.get(xmm_at(number)..xmm_at(number) + 8);
        bytes.and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    })
}

struct Travel {
    khz: u32,
    saves: Vec<Duration>,
    restores: Vec<Duration>,
    moves: u32,
}

impl Travel {
    fn run(&mut self, engines: [Factory<'_>; 2]) -> Result<(), String> {
        let memory = tiny::memory(&program()).map_err(|e| e.to_string())?;
        tiny::set_handler(&memory, TIMER_VECTOR, &TIMER_HANDLER).map_err(|e| e.to_string())?;
        let mut state = start(self.khz);
        let mut clock = ClockState::default();
        let mut done = false;
        for make in engines.iter().cycle() {
            (state, clock, done) = self
                .stretch(*make, &memory, &state, &clock)
                .map_err(|e| format!("after {} moves: {e}", self.moves))?;
            if done || self.moves > ROUNDS / STRIDE {
                break;
            }
            self.moves += 1;
        }
        let ticks = memory.read_le::<u64>(TICKS).unwrap_or(0);
        if !done || self.moves != ROUNDS / STRIDE {
            return Err(format!("it moved {} times instead of {}", self.moves, ROUNDS / STRIDE));
        }
        if ticks != 1 || state.lapic.deadline_ticks.is_some() {
            return Err(format!("the timer came {ticks} times instead of once"));
        }
        let (got, wanted) = (result(&state), expected());
        if got != wanted {
            return Err(format!("the computation gave {got:x?} instead of {wanted:x?}"));
        }
        Ok(())
    }

    /// From one save to the next on one engine.
    fn stretch(
        &mut self,
        make: Factory<'_>,
        memory: &GuestMemory,
        state: &VcpuState,
        clock: &ClockState,
    ) -> Result<(VcpuState, ClockState, bool), String> {
        let text = |e: Error| e.to_string();
        let begin = Instant::now();
        let config = PartitionConfig {
            memory: memory.clone(),
            vcpus: 1,
            cpuid: portable(1, self.khz),
            tsc_khz: Some(self.khz),
            force_template: true,
            repeatable: false,
        };
        let partition = make(config).map_err(text)?;
        let mut vcpu = partition.create_vcpu(0).map_err(text)?;
        partition.set_clock(clock).map_err(text)?;
        vcpu.restore(state).map_err(text)?;
        self.restores.push(begin.elapsed());
        let done = {
            let _watchdog = Watchdog::new(vcpu.kicker(), PATIENCE);
            match vcpu.run().map_err(text)? {
                Exit::MmioWrite { gpa: CHECKPOINT, .. } => false,
                Exit::MmioWrite { gpa: DEVICE, .. } => true,
                Exit::Kicked => return Err(format!("nothing came of it in {} s", PATIENCE.as_secs())),
                other => return Err(format!("unexpected exit {other:?}")),
            }
        };
        let begin = Instant::now();
        vcpu.settle().map_err(text)?;
        let saved = vcpu.save().map_err(text)?;
        let clock = partition.clock().map_err(text)?;
        self.saves.push(begin.elapsed());
        Ok((saved, clock, done))
    }
}
