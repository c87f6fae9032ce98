//! Getting a vCPU thread out of KVM_RUN.
//!
//! A kick sets `kvm_run.immediate_exit`, which makes the *next* KVM_RUN return, and then sends a
//! real-time signal, which makes one that is under way return. The order leaves no gap: a vCPU thread
//! that is about to enter sees the flag.

#![allow(unsafe_code)] // Signals, and a flag in a page that the kernel shares.

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use hv::{Error, Kick};

use crate::abi::ENGINE;

/// Offset from SIGRTMIN: away from those that threading libraries take (the first few).
const SIGNAL_OFFSET: i32 = 7;

fn signal() -> i32 {
    libc::SIGRTMIN() + SIGNAL_OFFSET
}

extern "C" fn nothing(_: i32) {}

/// Installs the empty handler, once in the life of the process. Not `SIG_IGN`: an ignored signal
/// interrupts nothing.
pub(crate) fn install_handler() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: zero is a valid sigaction (no flags: no SA_RESTART, an empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        // SAFETY: the handler is a function that does nothing, so it is async-signal-safe.
        let result = unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    });
    done.map_err(|code| Error::Host {
        engine: ENGINE,
        what: "installing the vCPU signal's handler",
        source: std::io::Error::from_raw_os_error(code),
    })
}

/// This thread's id, with the kick signal unblocked: asked of the kernel once for each thread.
fn own_thread() -> i32 {
    thread_local!(static ID: Cell<i32> = const { Cell::new(0) });
    ID.with(|id| {
        if id.get() == 0 {
            // SAFETY: gettid has no conditions; the set is initialised by sigemptyset before use.
            unsafe {
                id.set(libc::gettid());
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, signal());
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
            }
        }
        id.get()
    })
}

/// What a vCPU shares with those who interrupt it.
pub(crate) struct KickTarget {
    /// `kvm_run.immediate_exit`; gone when the vCPU is dropped and its page unmapped.
    flag: Mutex<Option<NonNull<u8>>>,
    requested: AtomicBool,
    /// The thread inside of KVM_RUN, 0 for none.
    thread: AtomicI32,
}

// SAFETY: the pointer is only followed atomically, under the lock, while the vCPU's page is mapped
// (`retire` takes it away before).
unsafe impl Send for KickTarget {}
// SAFETY: as above.
unsafe impl Sync for KickTarget {}

impl KickTarget {
    /// `flag`: address of `immediate_exit` in the mapped `kvm_run`.
    pub(crate) fn new(flag: NonNull<u8>) -> Self {
        Self { flag: Mutex::new(Some(flag)), requested: AtomicBool::new(false), thread: AtomicI32::new(0) }
    }

    fn with_flag(&self, act: impl FnOnce(&AtomicU8)) {
        let flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = *flag {
            // SAFETY: mapped as long as it is here; the kernel and we only read or write the byte whole.
            act(unsafe { AtomicU8::from_ptr(address.as_ptr()) });
        }
    }

    /// Sets or clears the flag from the vCPU's own thread.
    pub(crate) fn set_immediate(&self, on: bool) {
        self.with_flag(|flag| flag.store(u8::from(on), Ordering::SeqCst));
    }

    /// Around KVM_RUN: from here a kick sends the signal to this thread.
    pub(crate) fn enter(&self) {
        self.thread.store(own_thread(), Ordering::SeqCst);
    }

    /// After KVM_RUN.
    pub(crate) fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// KVM_RUN was interrupted: whether it was a kick. Another may follow; it is not lost.
    pub(crate) fn take(&self) -> bool {
        self.set_immediate(false);
        self.requested.swap(false, Ordering::SeqCst)
    }

    /// Whether a kick waits to be seen.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// The vCPU goes away.
    pub(crate) fn retire(&self) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Kick for KickTarget {
    fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.set_immediate(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: a system call on plain numbers. A thread that has left KVM_RUN meanwhile runs an
            // empty handler.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// Kicks a vCPU that is lost, unless dropped before.
pub(crate) struct Watchdog {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    pub(crate) fn new(kick: Arc<dyn Kick>, patience: Duration) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            if stopped.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                kick.kick();
            }
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
