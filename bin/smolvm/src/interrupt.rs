//! Ctrl-C and its kin, at any moment.
//!
//! Problem: SIGINT, SIGTERM or SIGHUP may come at every instant of `run`, `build` or `demo` and must
//! leave neither instance nor process nor temporary file. Strategy: files in the making have no name
//! and the machine lives in this process, so both go with it; what would stay (an instance's
//! directory, a detached child) is registered here with how to undo it. One thread waits for the
//! signals, undoes in reverse order, ends the process's children, and exits with 128 + signal. While
//! a session is carried or a service followed, the signals are theirs ([`leave_to_others`]).
//! Invariants: what is made and how to undo it are registered in one step ([`making`]); after the
//! first undo nothing more is registered: the thread keeps the table locked until the process is gone.

use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, getpgrp, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long children may take to undo their own work.
const PATIENCE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

struct Table {
    next: u64,
    undo: Vec<(u64, Work)>,
    /// Who takes the signals now besides us.
    others: usize,
}

static TABLE: Mutex<Table> = Mutex::new(Table { next: 0, undo: Vec::new(), others: 0 });

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How far watching is: signals are kept for us but nobody waits for them yet, or somebody does.
enum Watch {
    Not,
    Kept(Signals),
    Watched,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch::Not);

/// Keeps signals from ending the process, before anything is made that would stay. They are acted on
/// once [`watch`] was called: soon, so that the thread for it costs a resume nothing.
///
/// # Errors
/// The host's: no handler.
pub fn keep() -> io::Result<()> {
    let mut state = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*state, Watch::Not) {
        *state = Watch::Kept(Signals::new([SIGINT, SIGTERM, SIGHUP])?);
    }
    Ok(())
}

/// Acts on signals from now on, also on those that were kept.
///
/// # Errors
/// The host's: no thread, no handler.
pub fn watch() -> io::Result<()> {
    keep()?;
    let mut state = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    let Watch::Kept(mut signals) = std::mem::replace(&mut *state, Watch::Watched) else { return Ok(()) };
    let wait = move || {
        for signal in signals.forever() {
            let mut table = table();
            if table.others > 0 {
                continue;
            }
            end_children();
            while let Some((_, undo)) = table.undo.pop() {
                undo();
            }
            // Still locked: the main thread makes nothing new on its way out.
            std::process::exit(128 + signal);
        }
    };
    std::thread::Builder::new().name("interrupt".into()).stack_size(256 * 1024).spawn(wait).map(drop)
}

/// Something to undo on a signal; forgotten when dropped.
#[must_use]
pub struct Undo(u64);

impl Drop for Undo {
    fn drop(&mut self) {
        table().undo.retain(|(id, _)| *id != self.0);
    }
}

/// Makes something and registers how to undo it; no signal is acted on in between.
///
/// # Errors
/// `make`'s: nothing is registered then.
pub fn making<T, E, U: FnOnce() + Send + 'static>(
    make: impl FnOnce() -> Result<T, E>,
    undo: impl FnOnce(&T) -> U,
) -> Result<(T, Undo), E> {
    let mut table = table();
    let made = make()?;
    table.next += 1;
    let id = table.next;
    table.undo.push((id, Box::new(undo(&made))));
    Ok((made, Undo(id)))
}

/// While it lives, signals are not ours.
#[must_use]
pub struct Others(());

impl Drop for Others {
    fn drop(&mut self) {
        table().others -= 1;
    }
}

/// Leaves signals to whoever carries them to the guest.
pub fn leave_to_others() -> Others {
    table().others += 1;
    Others(())
}

/// Asks the children of this process group (apt, other `smolvm`s of a demo) to end and waits for
/// them. A detached machine has a group of its own and is left alone.
fn end_children() {
    let begun = Instant::now();
    for pid in children() {
        let _ = kill_process(pid, Signal::TERM);
    }
    while !children().is_empty() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Living children in our process group (proc_pid_stat(5)): a zombie whose parent thread stands still is done.
fn children() -> Vec<Pid> {
    let ours = getpgrp();
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        lists.flat_map(|l| l.split_whitespace().flat_map(str::parse).collect::<Vec<_>>()).collect();
    let pids = pids.into_iter().filter_map(Pid::from_raw);
    pids.filter(|pid| getpgid(Some(*pid)).is_ok_and(|group| group == ours) && !is_zombie(*pid)).collect()
}

/// Ends a process that cannot be asked, and waits until it is gone.
pub fn end_process(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let begun = Instant::now();
    while kill_process(pid, Signal::KILL).is_ok() && !is_zombie(pid) && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The name may hold anything, also blanks and brackets: the state follows the last one.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}
