//! When things happened, for benches/startup: with `SMOLVM_TRACE` set, lines on stderr at the end,
//! `smolvm-trace NAME NANOSECONDS`, in CLOCK_MONOTONIC, which the bench compares with its own.
//!
//! A point costs a clock reading, so they are always taken.

use crate::ui::say::tell;
use std::sync::{Mutex, PoisonError};

static POINTS: Mutex<Vec<(&str, u64)>> = Mutex::new(Vec::new());

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn note(name: &'static str, value: u64) {
    POINTS.lock().unwrap_or_else(PoisonError::into_inner).push((name, value));
}

/// This happened now.
pub fn point(name: &'static str) {
    note(name, now_ns());
}

/// What a machine knows of itself: when its first instruction ran, and where its memory is in this process.
pub fn machine(machine: &machine::Machine) {
    note("first_run", machine.first_run_ns().unwrap_or(0));
    let (start, len) = machine.memory_place();
    note("memory_start", start as u64);
    note("memory_len", len);
}

/// Guest instructions executed so far, where the engine counts them; the machine is paused or has ended.
pub fn instructions(machine: &machine::Machine) {
    if wanted() {
        note("instructions", machine.instructions().unwrap_or(0));
    }
}

fn wanted() -> bool {
    std::env::var_os("SMOLVM_TRACE").is_some()
}

/// Prints what there is since the last time.
pub fn print() {
    let points = std::mem::take(&mut *POINTS.lock().unwrap_or_else(PoisonError::into_inner));
    if wanted() {
        for (name, value) in points {
            tell!("smolvm-trace {name} {value}");
        }
    }
}
