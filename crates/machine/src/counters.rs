//! What an engine counted, and looks at its vCPUs.
//!
//! Counters are asked of vCPUs that run: a kick makes each stop for an instant, and its own thread answers.
//! A vCPU that stands still is read as it is.

use std::sync::{Condvar, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bus::lock;
use hv::{Counters, EngineKind, Vcpu, Watch};
use serde::{Deserialize, Serialize};

use crate::{Error, Machine};

/// How long a vCPU may take to look up from what it does in a device.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at whether it stands still by now.
const LOOK: Duration = Duration::from_millis(20);

/// What an engine did in a machine since it was booted or resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFigures {
    pub engine: EngineKind,
    /// CPU time of the vCPUs in milliseconds.
    pub vcpu_ms: u64,
    pub vcpus: Vec<VcpuFigures>,
}

/// The same of one vCPU: [`hv::Counters`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuFigures {
    pub instructions: Option<u64>,
    pub exits: u64,
    /// The engine's own, by name.
    pub details: Vec<(String, u64)>,
}

impl From<Counters> for VcpuFigures {
    fn from(counters: Counters) -> Self {
        let details = counters.details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { instructions: counters.instructions, exits: counters.exits, details }
    }
}

/// Questions to vCPUs, by number.
#[derive(Default)]
pub(crate) struct Questions {
    seats: Mutex<Vec<Seat>>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct Seat {
    asked: bool,
    /// How often it has answered.
    answers: u64,
    last: Counters,
}

impl Questions {
    fn seat(seats: &mut Vec<Seat>, id: usize) -> &mut Seat {
        if seats.len() <= id {
            seats.resize(id + 1, Seat::default());
        }
        &mut seats[id]
    }

    /// By the thread of vCPU `id` after a kick.
    pub(crate) fn answer(&self, id: usize, vcpu: &dyn Vcpu) {
        let mut seats = lock(&self.seats);
        let seat = Self::seat(&mut seats, id);
        if std::mem::take(&mut seat.asked) {
            seat.last = vcpu.counters();
            seat.answers += 1;
            self.changed.notify_all();
        }
    }

    /// Asks vCPU `id`, whose `kick` it is, and waits a while.
    fn ask(&self, id: usize, kick: impl FnOnce()) -> Option<Counters> {
        let mut seats = lock(&self.seats);
        let seat = Self::seat(&mut seats, id);
        seat.asked = true;
        let before = seat.answers;
        drop(seats);
        kick();
        let waits = |seats: &mut Vec<Seat>| Self::seat(seats, id).answers == before;
        let waited = self.changed.wait_timeout_while(lock(&self.seats), LOOK, waits);
        let (mut seats, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out()).then(|| Self::seat(&mut seats, id).last.clone())
    }
}

impl Machine {
    /// Lets somebody look at the vCPUs from their next piece on; before they run.
    pub fn watch(&self, watch: &Watch) {
        self.vcpus.iter().for_each(|vcpu| lock(vcpu).watch(watch.clone()));
    }

    /// What the engine counted so far; the machine may run.
    ///
    /// # Errors
    /// A vCPU is held up in a device for seconds.
    pub fn engine_figures(&self) -> Result<EngineFigures, Error> {
        let vcpus = (0..self.vcpus.len()).map(|id| self.counters_of(id).map(VcpuFigures::from));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        Ok(EngineFigures { engine: self.engine(), vcpu_ms: host::usage("vcpu").named_ms, vcpus })
    }

    fn counters_of(&self, id: usize) -> Result<Counters, Error> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            match self.vcpus[id].try_lock() {
                Ok(vcpu) => return Ok(vcpu.counters()),
                Err(TryLockError::Poisoned(vcpu)) => return Ok(vcpu.into_inner().counters()),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(counters) = self.world.questions.ask(id, || self.world.control.kick_vcpu(id)) {
                return Ok(counters);
            }
        }
        Err(Error::Busy(id))
    }
}
