//! A running machine's memory copied ahead of its snapshot, where the engine logs writes (KVM).
//!
//! What is copied when is `snapshot`'s ([`CopyAhead`]); here is what it asks of the machine: the log, moments in which
//! all stands still, and to be slowed down. Next: `save.rs`, which takes the instant from the copy.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use artifact::PageSet;
use bus::lock;
use guestmem::GuestMemory;
use hv::Writes;
use snapshot::{AheadStats, CopyAhead, Running, StillMemory};

use crate::Error;
use crate::builder;
use crate::error::host;
use crate::lifecycle::Control;
use crate::machine::Machine;

/// vCPUs that are slowed down stand still for a share of each such time: never as long as a pause may take.
const PERIOD: Duration = Duration::from_millis(10);

/// Memory that is being copied while the machine runs.
pub struct Ahead<'a> {
    running: Run<'a>,
    copy: CopyAhead,
    /// Memory as it was mapped from files, where it was.
    files: Option<GuestMemory>,
}

/// What was copied, and what the guest noticed of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AheadReport {
    #[serde(flatten)]
    pub stats: AheadStats,
    /// The longest that the vCPUs were made to stand still at a time, µs, before the instant.
    pub longest_stop_us: u64,
    /// All of that, µs.
    pub stops_us: u64,
}

impl Machine {
    /// Begins to copy memory for [`Machine::still`] while the machine runs, where the engine has use for that. The copy
    /// lies in a nameless file in `dir`.
    ///
    /// # Errors
    /// The engine's, the host's; [`Error::Ended`]; no room in `dir`; another instant that is being written.
    pub fn copy_ahead(&self, dir: &Path) -> Result<Option<Ahead<'_>>, Error> {
        if self.partition.writes() != Writes::Logged {
            return Ok(None);
        }
        let files = self.as_mapped()?;
        let origin = self.mapped();
        let none = PageSet::new(origin.bound());
        let running = Run { machine: self, brake: Brake::new(self.world.control.clone()) };
        let mapped = if files.is_some() { &none } else { &origin };
        let copy = CopyAhead::begin(&self.memory, &running, mapped, dir)
            .map_err(|e| self.copy_error("beginning to copy the machine's memory", e))?;
        artifact::space::check(dir, dir, copy.bytes())?;
        Ok(Some(Ahead { running, copy, files }))
    }

    fn copy_error(&self, what: &'static str, error: io::Error) -> Error {
        match self.outcome() {
            Some(outcome) => Error::Ended(outcome.to_string()),
            None => host(what)(error),
        }
    }

    /// Memory as it was before anything ran, if it was mapped from files.
    fn as_mapped(&self) -> Result<Option<GuestMemory>, Error> {
        let [file, parent] = &self.files;
        let Some(file) = file else { return Ok(None) };
        let memory = builder::memory(self.memory.size())?;
        snapshot::map_memory(file, parent.as_deref(), &memory)?;
        Ok(Some(memory))
    }
}

impl Ahead<'_> {
    /// Copies until little is left, or until it is clear that more would not help.
    ///
    /// # Errors
    /// The engine's, the host's; [`Error::Ended`].
    pub fn rounds(&mut self) -> Result<(), Error> {
        let copied = self.copy.rounds(&self.running);
        copied.map_err(|e| self.running.machine.copy_error("copying the machine's memory", e))
    }

    /// The instant: the machine is paused.
    pub(crate) fn finish(self, origin: &PageSet) -> io::Result<(StillMemory, AheadReport)> {
        let (memory, stats) = self.copy.finish(&self.running, origin, self.files)?;
        let (longest, all) = *lock(&self.running.brake.shared.stops);
        let us = |time: Duration| time.as_micros() as u64;
        Ok((memory, AheadReport { stats, longest_stop_us: us(longest), stops_us: us(all) }))
    }
}

/// The machine as [`CopyAhead`] sees it.
struct Run<'a> {
    machine: &'a Machine,
    brake: Brake,
}

impl Running for Run<'_> {
    fn take_written(&self, words: &mut [u64]) -> io::Result<()> {
        self.machine.partition.take_written(words).map_err(io::Error::other)
    }

    fn stand(&self, act: &mut dyn FnMut()) -> io::Result<()> {
        let machine = self.machine;
        let mut stops = lock(&self.brake.shared.stops);
        let begun = Instant::now();
        machine.pause().map_err(io::Error::other)?;
        machine.standing(act);
        machine.world.control.resume();
        note(&mut stops, begun);
        Ok(())
    }

    fn slow_down(&self, percent: u8) {
        self.brake.set(percent);
    }
}

/// Makes vCPUs stand still for a share of the time, on a thread of its own: who copies may have to wait for the host.
struct Brake {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    control: Arc<Control>,
    setting: Mutex<Setting>,
    changed: Condvar,
    /// Held by who makes the machine stand: the longest time, and all.
    stops: Mutex<(Duration, Duration)>,
}

#[derive(Clone, Copy, Default)]
struct Setting {
    percent: u8,
    ended: bool,
}

fn note(stops: &mut (Duration, Duration), begun: Instant) {
    let took = begun.elapsed();
    *stops = (stops.0.max(took), stops.1 + took);
}

impl Brake {
    fn new(control: Arc<Control>) -> Self {
        let (setting, stops) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { control, setting, changed: Condvar::new(), stops });
        Self { shared, thread: Mutex::default() }
    }

    fn set(&self, percent: u8) {
        lock(&self.shared.setting).percent = percent;
        self.shared.changed.notify_all();
        let mut thread = lock(&self.thread);
        if percent > 0 && thread.is_none() {
            let shared = self.shared.clone();
            // Where the host has no thread left, nothing is slowed down, and the rounds end by giving up.
            *thread = std::thread::Builder::new().name("brake".into()).spawn(move || shared.work()).ok();
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut setting = lock(&self.setting);
        while !setting.ended {
            let stop = PERIOD * u32::from(setting.percent.min(99)) / 100;
            if stop.is_zero() {
                setting = self.changed.wait(setting).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(setting);
            self.stop(stop);
            setting = lock(&self.setting);
            let run = self.changed.wait_timeout(setting, PERIOD - stop);
            setting = run.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn stop(&self, time: Duration) {
        let mut stops = lock(&self.stops);
        // Who else made it stand (a debugger) lets it run again.
        if !self.control.is_running() {
            return;
        }
        let begun = Instant::now();
        if self.control.pause() {
            std::thread::sleep(time.saturating_sub(begun.elapsed()));
            self.control.resume();
            note(&mut stops, begun);
        }
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        lock(&self.shared.setting).ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}
