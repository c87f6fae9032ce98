//! Guest time: one clock for the whole machine.
//!
//! Problem: TSC, kvmclock and APIC timers must agree on all vCPUs, never go back, and go on after a
//! restore as if the frozen time had not been.
//!
//! Strategy: everything is a function of one number, the nanoseconds since the machine booted
//! ([`Clock::now_ns`]): the TSC is that number times the frequency plus a vCPU's own offset, kvmclock
//! is the number itself. The guest reads kvmclock from its pvclock page as a linear function of the
//! TSC, so one write of the page is enough for the life of the machine.
//!
//! Invariants: [`Clock::now_ns`] never goes back; while held it stands still.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use guestmem::GuestMemory;

/// Not held.
const RUNNING: u64 = u64::MAX;
const NS_PER_S: u64 = 1_000_000_000;
/// pvclock flags: the TSC is the same on all vCPUs (KVM: Documentation/virt/kvm/x86/msr.rst).
const PVCLOCK_TSC_STABLE: u8 = 1;

/// The machine's clock. It starts held at 0; [`Clock::resume`] lets it count.
#[derive(Debug)]
pub struct Clock {
    tsc_khz: u32,
    /// TSC ticks a nanosecond, in units of 2^-32, rounded down: the TSC's definition. (It is slower
    /// than `tsc_khz` by less than a tick in four seconds, which spares a division at every RDTSC.)
    rate: u64,
    mark: Instant,
    /// Nanoseconds to add (wrapping) to what passed since `mark`.
    offset: AtomicU64,
    /// TSC ticks to add (wrapping) to those of [`Clock::now_ns`]: setting the clock does not move the
    /// TSC, so that it does not matter whether vCPUs are restored before or after.
    tsc_base: AtomicU64,
    /// The value while it stands still, or [`RUNNING`].
    held: AtomicU64,
    /// Whether the time spent held is left out when it goes on. The lock makes starting and holding
    /// one step each: of two vCPUs that start it, the second finds it started.
    skip: Mutex<bool>,
    /// It never counts by itself: only [`Clock::advance`] moves it.
    repeatable: bool,
}

/// Host time at which a [`Clock::repeatable`] was 0: the start of 2026.
const REPEATABLE_BOOT_NS: u64 = 1_767_225_600 * NS_PER_S;

/// Guest TSC frequencies that make sense, in kHz.
const KHZ: std::ops::RangeInclusive<u32> = 1_000..=100_000_000;

impl Clock {
    /// A clock that stands at 0 ns; `tsc_khz` is brought into 1 MHz to 100 GHz.
    pub fn new(tsc_khz: u32) -> Self {
        let tsc_khz = tsc_khz.clamp(*KHZ.start(), *KHZ.end());
        Self {
            tsc_khz,
            rate: (u64::from(tsc_khz) << 32) / 1_000_000,
            mark: Instant::now(),
            offset: AtomicU64::new(0),
            tsc_base: AtomicU64::new(0),
            held: AtomicU64::new(0),
            skip: Mutex::new(true),
            repeatable: false,
        }
    }

    /// A clock that [`Clock::advance`] alone moves, and whose guest booted at a fixed date.
    pub fn repeatable(tsc_khz: u32) -> Self {
        Self { repeatable: true, ..Self::new(tsc_khz) }
    }

    /// Whether it is one of those.
    pub fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// Guest TSC frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    fn since_mark(&self) -> u64 {
        self.mark.elapsed().as_nanos() as u64
    }

    /// Nanoseconds since the machine booted, frozen time not counted.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        let held = self.held.load(Ordering::Acquire);
        if held != RUNNING {
            return held;
        }
        self.since_mark().wrapping_add(self.offset.load(Ordering::Relaxed))
    }

    /// Sets the clock; it stands there until [`Clock::resume`]. For the time before any vCPU runs.
    /// TSCs stay what they are.
    pub fn set_ns(&self, ns: u64) {
        let mut skip = self.control();
        *skip = true;
        let tsc = self.tsc();
        let ns = ns.min(RUNNING >> 1);
        self.tsc_base.store(tsc.wrapping_sub(self.ticks(ns)), Ordering::Relaxed);
        self.held.store(ns, Ordering::Release);
    }

    fn control(&self) -> MutexGuard<'_, bool> {
        self.skip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it stand still, so that everything saved meanwhile belongs to one moment. When it goes
    /// on, the time spent is counted: the machine was stopped, not frozen.
    pub fn hold(&self) {
        let mut skip = self.control();
        if self.held.load(Ordering::Acquire) == RUNNING {
            *skip = false;
            self.held.store(self.now_ns(), Ordering::Release);
        }
    }

    /// Moves a clock that stands still on by `ns`, the TSC with it: time as a function of something else
    /// than the host's.
    pub fn advance(&self, ns: u64) {
        let _control = self.control();
        let held = self.held.load(Ordering::Acquire);
        if held != RUNNING {
            self.held.store((held + ns).min(RUNNING >> 1), Ordering::Release);
        }
    }

    /// Lets it count.
    #[inline]
    pub fn resume(&self) {
        if self.held.load(Ordering::Acquire) != RUNNING {
            self.start();
        }
    }

    #[cold]
    fn start(&self) {
        let skip = self.control();
        let held = self.held.load(Ordering::Acquire);
        if held == RUNNING || self.repeatable {
            return;
        }
        if *skip {
            self.offset.store(held.wrapping_sub(self.since_mark()), Ordering::Relaxed);
        }
        self.held.store(RUNNING, Ordering::Release);
    }

    /// TSC ticks of so many nanoseconds, rounded down.
    #[inline]
    pub fn ticks(&self, ns: u64) -> u64 {
        ((u128::from(ns) * u128::from(self.rate)) >> 32) as u64
    }

    /// Nanoseconds of so many TSC ticks, rounded up; saturating.
    pub fn ns_of_ticks(&self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) << 32).div_ceil(u128::from(self.rate));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// TSC of a vCPU whose offset is 0.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.tsc_at(self.now_ns())
    }

    /// TSC of a vCPU whose offset is 0, at a moment of the clock.
    #[inline]
    pub(crate) fn tsc_at(&self, ns: u64) -> u64 {
        self.ticks(ns).wrapping_add(self.tsc_base.load(Ordering::Relaxed))
    }

    /// Writes the pvclock page of a vCPU whose TSC is ahead by `tsc_offset` (KVM:
    /// Documentation/virt/kvm/x86/msr.rst, struct pvclock_vcpu_time_info). An address outside of RAM
    /// is ignored, as KVM does.
    pub(crate) fn write_pvclock(&self, memory: &GuestMemory, gpa: u64, tsc_offset: u64) {
        let ns = self.now_ns();
        let (mul, shift) = self.scale();
        let version = memory.read_le::<u32>(gpa).unwrap_or(0) & !1;
        let mut page = [0u8; 32];
        page[0..4].copy_from_slice(&version.wrapping_add(1).to_le_bytes());
        page[8..16].copy_from_slice(&self.tsc_at(ns).wrapping_add(tsc_offset).to_le_bytes());
        page[16..24].copy_from_slice(&ns.to_le_bytes());
        page[24..28].copy_from_slice(&mul.to_le_bytes());
        page[28] = shift as u8;
        page[29] = PVCLOCK_TSC_STABLE;
        if memory.write(gpa, &page).is_ok() {
            // Even again: the contents are whole.
            let _ = memory.write_le::<u32>(gpa, version.wrapping_add(2));
        }
    }

    /// `mul`, `shift` such that ns = ((ticks << shift) * mul) >> 32, a negative shift to the right.
    fn scale(&self) -> (u32, i8) {
        let khz = u128::from(self.tsc_khz);
        let base = 1_000_000u128 << 32;
        for shift in -31i8..=31 {
            let mul = if shift >= 0 { base / (khz << shift) } else { (base << -shift) / khz };
            if let Ok(mul) = u32::try_from(mul) {
                return (mul, shift);
            }
        }
        (0, 0)
    }

    /// Writes the wall-clock structure: host time at which the machine's clock was 0 (KVM: struct
    /// pvclock_wall_clock).
    pub(crate) fn write_wall_clock(&self, memory: &GuestMemory, gpa: u64) {
        let boot = if self.repeatable {
            REPEATABLE_BOOT_NS
        } else {
            let host = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
            host.saturating_sub(self.now_ns())
        };
        let version = memory.read_le::<u32>(gpa).unwrap_or(0) & !1;
        let mut out = [0u8; 12];
        out[0..4].copy_from_slice(&version.wrapping_add(1).to_le_bytes());
        out[4..8].copy_from_slice(&((boot / NS_PER_S) as u32).to_le_bytes());
        out[8..12].copy_from_slice(&((boot % NS_PER_S) as u32).to_le_bytes());
        if memory.write(gpa, &out).is_ok() {
            let _ = memory.write_le::<u32>(gpa, version.wrapping_add(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_clock_stands_until_it_is_resumed_and_never_goes_back() {
        let clock = Clock::new(2_500_000);
        clock.set_ns(5_000);
        assert_eq!(clock.now_ns(), 5_000);
        assert_eq!(clock.tsc(), 0, "setting the clock moves no TSC");
        clock.resume();
        let first = clock.now_ns();
        assert!(first >= 5_000);
        clock.hold();
        let held = clock.now_ns();
        assert!(held >= first);
        assert_eq!(clock.now_ns(), held);
        clock.resume();
        assert!(clock.now_ns() >= held);
    }

    #[test]
    fn the_pvclock_page_gives_the_clock_back_for_any_frequency() {
        let memory = GuestMemory::new(4096 * 4).unwrap();
        for khz in [1_000, 999_999, 1_000_000, 2_450_123, 3_000_000, 4_294_967, 100_000_000] {
            let clock = Clock::new(khz);
            clock.set_ns(3_000_000_000);
            clock.write_pvclock(&memory, 0x1000, 77);
            let word = |at: u64| memory.read_le::<u64>(0x1000 + at).unwrap();
            assert_eq!(word(0) & 1, 0, "the version is even when the page is whole");
            let shift = memory.read_le::<u8>(0x101c).unwrap() as i8;
            let mul = u128::from(memory.read_le::<u32>(0x1018).unwrap());
            let delta = u128::from(clock.ticks(7_000_000_000) - clock.ticks(3_000_000_000));
            let delta = if shift >= 0 { delta << shift } else { delta >> -shift };
            let ns = word(16) + ((delta * mul) >> 32) as u64;
            assert!((7_000_000_000 - 1_100..=7_000_000_000).contains(&ns), "{khz}: {ns}");
        }
    }
}
