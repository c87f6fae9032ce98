//! [`SoftVcpu`]: way (a), first step. Next: `machine/vcpu_thread.rs`.

use std::any::Any;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guestmem::GuestMemory;
use hv::{Counters, Error, Exit, HotBlock, Kick, Learnt, Look, Stops, Vcpu, VcpuState, Watch};
use x86cpu::{Cpu, Engine, PollFlag, Stop};

use crate::baton::{Baton, Gate, Order, Seat};
use crate::counters::{Exits, counters};
use crate::kept;
use crate::partition::{ENGINE, Shared};
use crate::rounds::{PIECE, Rounds, TURN};

/// Instructions before somebody who waits gets the baton: about 200 µs.
const SLICE: u64 = 20_000;
/// Instructions that a vCPU executes first of all after a restore; then it lets others have the host's processor, once.
/// Of many machines that begin together each has begun before any goes on.
const FIRST: u64 = 1_000;
/// A vCPU that sleeps for so long has time to translate what will run.
const SPARE: Duration = Duration::from_millis(5);
/// The most that the vCPUs of a machine translate before it runs: 2 ms of a core, 0.9 MiB. More would be worth its time,
/// and not its memory: an idle machine is to have no more than 8 MiB of its own (docs/adr/0162).
const AHEAD: usize = 512;
/// How long a vCPU waits for what was kept of its translations: many times what reading takes.
const PATIENCE: Duration = Duration::from_millis(200);
/// A vCPU that sleeps for so long may be idle.
const REST: Duration = Duration::from_millis(200);

pub(crate) struct SoftVcpu {
    cpu: Box<Cpu>,
    id: u32,
    shared: Arc<Shared>,
    /// The reply slot of the last exit, or the data of a write.
    data: [u8; 8],
    /// The last exit was a read: `data` is its answer.
    reading: bool,
    /// An access that came up while settling: the next exit.
    deferred: Option<Stop>,
    /// Restored and not run since: timers and clock page must follow the clock.
    fresh: bool,
    /// It has translated what it could before it runs.
    is_ahead: bool,
    /// Instructions that it had executed when it rested last.
    rested_at: u64,
    /// It waits for what was kept.
    is_patient: bool,
    /// It has said what it needs to get some of that.
    has_said: bool,
    /// Instructions that are left of its turn in the round.
    turn_left: u64,
    /// A debugger's: while there are any, it looks after each instruction.
    stops: Option<Stops>,
    exits: Exits,
    watch: Option<Watch>,
    /// Called after the first piece.
    after_first: Option<Box<dyn FnOnce() + Send>>,
}

struct SoftKick {
    id: u32,
    poll: Arc<PollFlag>,
    shared: Arc<Shared>,
}

impl Kick for SoftKick {
    fn kick(&self) {
        let seat = &self.shared.seats[self.id as usize];
        seat.kicked.store(true, Ordering::Release);
        self.poll.kick();
        seat.wake();
        match &self.shared.order {
            Order::Turns(baton) => baton.nudge(&self.shared.seats),
            Order::Rounds(rounds) => rounds.nudge(seat),
            Order::Together(_) => {}
        }
    }
}

/// Decoded code.
struct SoftLearnt(x86cpu::Learnt);

impl Learnt for SoftLearnt {
    fn fit(&mut self, memory: &GuestMemory) {
        self.0.fit(memory);
    }
}

impl SoftVcpu {
    pub(crate) fn new(cpu: Box<Cpu>, id: u32, shared: Arc<Shared>) -> Self {
        Self {
            cpu,
            id,
            shared,
            data: [0; 8],
            reading: false,
            deferred: None,
            fresh: false,
            is_ahead: true,
            rested_at: 0,
            is_patient: true,
            has_said: false,
            turn_left: 0,
            stops: None,
            exits: Exits::default(),
            watch: None,
            after_first: None,
        }
    }

    /// Hands the answer of the last read to the CPU.
    fn answer(&mut self) {
        if std::mem::take(&mut self.reading) {
            self.cpu.reply(u64::from_le_bytes(self.data));
        }
    }

    /// After a restore: timers and clock page follow the clock, which runs. In this vCPU's turn, where there are turns.
    fn follow_clock(&mut self) {
        if std::mem::take(&mut self.fresh) {
            self.cpu.clock_changed();
        }
    }

    /// Executes until something is for the machine; `None`: for its debugger.
    fn execute(&mut self) -> Option<Stop> {
        let shared = Arc::clone(&self.shared);
        let seat = &shared.seats[self.id as usize];
        loop {
            seat.clear();
            let executed = self.cpu.instructions();
            let work = executed - self.rested_at;
            let all = Arc::clone(&shared);
            let wake = move || all.seats.iter().for_each(Seat::wake);
            shared.foretold.look(executed, work, wake);
            if self.await_kept(seat) {
                continue;
            }
            let stop = match &shared.order {
                Order::Together(gate) => {
                    let long = shared.foretold.until_look(executed, work);
                    let most = self.most(if self.fresh { FIRST } else { long });
                    self.follow_clock();
                    self.take_kept(gate);
                    match gate.together(|| self.cpu.run(most)) {
                        Stop::Alone => gate.alone(&shared.seats, || self.cpu.run_alone()),
                        stop => Some(stop),
                    }
                }
                Order::Turns(baton) => self.turn(baton),
                Order::Rounds(rounds) => self.round(rounds),
            };
            if let Some(hook) = self.after_first.take() {
                hook();
            }
            if !self.has_said && shared.foretold.kept.is_offered() {
                self.has_said = true;
                shared.foretold.kept.say_places(self.id as usize, self.cpu.code_places());
            }
            if matches!(stop, None | Some(Stop::Budget)) && self.is_stopped() {
                return None;
            }
            match stop {
                None => {}
                // It waits in a loop for another vCPU, which may wait for this host CPU; or has just begun.
                Some(Stop::Budget) => std::thread::yield_now(),
                Some(Stop::Halt) => self.sleep(seat),
                // The flag may be left from a kick that was seen in the line, or be for others to be alone.
                Some(Stop::Poll) if !seat.kicked.swap(false, Ordering::AcqRel) => {}
                Some(stop) => return Some(stop),
            }
        }
    }

    /// Waits while what was kept is being read, which takes less time than doing without; whether it was woken meanwhile.
    fn await_kept(&mut self, seat: &Seat) -> bool {
        let waits = self.is_patient && self.shared.foretold.kept.is_awaited() && !seat.is_kicked();
        if waits {
            self.is_patient = seat.sleep(Some(PATIENCE));
        }
        waits
    }

    /// Goes on with what was kept of its translations, once that is there.
    fn take_kept(&mut self, gate: &Gate) {
        if let Some(kept) = self.shared.foretold.kept.take(self.id as usize) {
            gate.together(|| self.cpu.adopt(kept));
        }
    }

    /// Sleeps until woken or until its timer is due; after a while without what it finds again when it goes on.
    fn sleep(&mut self, seat: &Seat) {
        self.exits.halts += 1;
        if self.is_ahead || !self.look_ahead(seat) {
            self.rest(seat);
        }
    }

    /// Uses the time to translate what will run, a while after it fell asleep; whether it has been woken, or its timer is
    /// due.
    fn look_ahead(&mut self, seat: &Seat) -> bool {
        let due = self.until_timer();
        let first = due.map_or(SPARE, |due| due.min(SPARE));
        if seat.sleep(Some(first)) || first < SPARE {
            return true;
        }
        let shared = Arc::clone(&self.shared);
        let Order::Together(gate) = &shared.order else {
            self.is_ahead = true;
            return false;
        };
        // A copy that shares what was learnt would have much of its own. Where code was kept, that is read when it is
        // needed.
        let none = self.cpu.shares_code() || shared.foretold.kept.is_expected();
        let most = if none { 0 } else { AHEAD / shared.seats.len() };
        if most > 0 {
            shared.foretold.ask();
        }
        while gate.together(|| self.cpu.translate_ahead(most)) {
            if seat.is_woken() || self.until_timer().is_some_and(|due| due.is_zero()) {
                return true;
            }
        }
        self.is_ahead = shared.foretold.is_settled();
        false
    }

    fn rest(&mut self, seat: &Seat) {
        let begun = Instant::now();
        let due = self.until_timer();
        if due.is_some_and(|due| due < REST) {
            seat.sleep(due);
        } else if !seat.sleep(Some(REST)) {
            self.cpu.give_back();
            seat.sleep(due.map(|due| due.saturating_sub(begun.elapsed())));
            self.cpu.rested();
            self.rested_at = self.cpu.instructions();
        }
    }

    /// Executes with the baton. `None`: go on.
    fn turn(&mut self, baton: &Baton) -> Option<Stop> {
        let shared = Arc::clone(&self.shared);
        let seat = &shared.seats[self.id as usize];
        let slice = self.most(if shared.seats.len() == 1 { u64::MAX } else { SLICE });
        if !baton.take(self.id, seat) {
            // The kick is what `execute` looks for.
            return Some(Stop::Poll);
        }
        self.follow_clock();
        let stop = loop {
            match self.cpu.run(slice) {
                Stop::Budget if !baton.is_wanted() && self.stops.is_none() => {}
                Stop::Budget => break None,
                Stop::Alone => match self.cpu.run_alone() {
                    None => {}
                    stop => break stop,
                },
                stop => break Some(stop),
            }
        };
        baton.pass(&shared.seats);
        stop
    }

    /// Executes a piece of its turn in the round. `None`: go on.
    fn round(&mut self, rounds: &Rounds) -> Option<Stop> {
        let shared = Arc::clone(&self.shared);
        let (id, seats, clock) = (self.id as usize, &shared.seats, &*shared.clock);
        if !rounds.take(id, &seats[id]) {
            return Some(Stop::Poll);
        }
        self.follow_clock();
        if self.turn_left == 0 {
            self.turn_left = TURN;
        }
        let piece = self.most(self.turn_left.min(PIECE));
        let before = self.cpu.instructions();
        let stop = self.cpu.run(piece);
        let stop = if stop == Stop::Alone { self.cpu.run_alone() } else { Some(stop) };
        let done = self.cpu.instructions() - before;
        Rounds::executed(clock, done);
        self.turn_left = self.turn_left.saturating_sub(done);
        if let Some(watch) = &self.watch {
            let look = Look { vcpu: self.id, instructions: self.cpu.instructions(), state: &self.cpu.save() };
            if let Err(why) = (watch.see)(&look) {
                return Some(Stop::Unsupported(why));
            }
        }
        match stop {
            // Less than it may: it waits in a loop for another one.
            Some(Stop::Budget) => {
                if self.turn_left == 0 || done < piece {
                    self.turn_left = 0;
                    rounds.pass(id, clock, seats);
                }
                None
            }
            Some(Stop::Halt) => {
                self.turn_left = 0;
                rounds.rest(id, self.cpu.timer_due_ns(), clock, seats);
                None
            }
            stop => stop,
        }
    }

    /// How many instructions to execute at a time: under a debugger one.
    fn most(&self, otherwise: u64) -> u64 {
        if self.stops.is_some() { 1 } else { otherwise }
    }

    /// Whether a debugger wants it to stop where it is.
    fn is_stopped(&self) -> bool {
        self.stops.as_ref().is_some_and(|stops| stops.holds(self.cpu.rip()))
    }

    fn until_timer(&self) -> Option<Duration> {
        let due = self.cpu.timer_due_ns()?;
        Some(Duration::from_nanos(due.saturating_sub(self.shared.clock.now_ns())))
    }

    fn exit(&mut self, stop: Stop) -> Exit<'_> {
        self.exits.count(&stop);
        let mut slot = |size: u8, value: u64| {
            self.data = value.to_le_bytes();
            usize::from(size)
        };
        match stop {
            Stop::PioRead { port, size } => {
                let len = slot(size, 0);
                self.reading = true;
                Exit::PioRead { port, data: &mut self.data[..len] }
            }
            Stop::PioWrite { port, size, value } => {
                let len = slot(size, u64::from(value));
                Exit::PioWrite { port, data: &self.data[..len] }
            }
            Stop::MmioRead { gpa, size } => {
                let len = slot(size, 0);
                self.reading = true;
                Exit::MmioRead { gpa, data: &mut self.data[..len] }
            }
            Stop::MmioWrite { gpa, size, value } => {
                let len = slot(size, value);
                Exit::MmioWrite { gpa, data: &self.data[..len] }
            }
            Stop::IoapicEoi { vector } => Exit::IoapicEoi { vector },
            Stop::TripleFault => Exit::Shutdown,
            Stop::Unsupported(reason) => Exit::Failed { reason },
            // `execute` keeps the others to itself.
            Stop::Poll | Stop::Halt | Stop::Budget | Stop::Alone => Exit::Kicked,
        }
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Result<Exit<'_>, Error> {
        self.answer();
        if let Some(stop) = self.deferred.take() {
            return Ok(self.exit(stop));
        }
        self.shared.clock.resume();
        match self.execute() {
            Some(stop) => Ok(self.exit(stop)),
            None => Ok(Exit::Debug),
        }
    }

    fn settle(&mut self) -> Result<(), Error> {
        self.answer();
        if self.deferred.is_none() {
            self.deferred = self.cpu.settle();
        }
        Ok(())
    }

    fn save(&mut self) -> Result<VcpuState, Error> {
        self.shared.clock.hold();
        Ok(self.cpu.save())
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), Error> {
        self.cpu.restore(state).map_err(|e| Error::BadState { engine: ENGINE, what: e.to_string() })?;
        self.reading = false;
        self.deferred = None;
        self.fresh = true;
        self.is_ahead = false;
        Ok(())
    }

    fn stop_at(&mut self, stops: &Stops) -> Result<(), Error> {
        self.stops = stops.is_any().then(|| stops.clone());
        Ok(())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(SoftKick { id: self.id, poll: self.cpu.poll_handle(), shared: Arc::clone(&self.shared) })
    }

    fn counters(&self) -> Counters {
        counters(&self.cpu.counters(), &self.exits)
    }

    fn watch(&mut self, watch: Watch) {
        if watch.plainly {
            self.cpu.set_engine(Engine::Interpreter);
        }
        self.watch = Some(watch);
    }

    fn after_first(&mut self, hook: Box<dyn FnOnce() + Send>) {
        self.after_first = Some(hook);
    }

    fn hot_blocks(&mut self) -> Vec<HotBlock> {
        self.cpu.hot_blocks()
    }

    fn keep_code(&mut self, to: &mut dyn Write) -> io::Result<bool> {
        let kept = &self.shared.foretold.kept;
        if kept.await_it() {
            // It has not worked since it was brought back: what was kept then is kept again.
            kept.read();
        }
        if let Some(kept) = kept.take(self.id as usize) {
            self.cpu.adopt(kept);
        }
        kept::write(to, |to| self.cpu.keep_code(to))
    }

    fn take_learnt(&mut self) -> Option<Box<dyn Learnt>> {
        Some(Box::new(SoftLearnt(self.cpu.take_learnt())))
    }

    fn learn(&mut self, learnt: Box<dyn Learnt>) {
        let learnt: Box<dyn Any> = learnt;
        if let Ok(learnt) = learnt.downcast::<SoftLearnt>() {
            self.cpu.learn(learnt.0);
        }
    }
}
