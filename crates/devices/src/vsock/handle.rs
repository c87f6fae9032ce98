//! The host's side: connect and listen.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use bus::lock;
use thiserror::Error;

use super::MAX_CONNECTIONS;
use super::worker::Shared;

/// Why there is no connection to the guest.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The guest has not started its socket driver, or the machine is gone.
    #[error("the guest's sockets are not up (port {port}): it has not booted that far, or has ended")]
    NotReady { port: u32 },
    /// Nobody listens there.
    #[error("nothing in the guest listens on vsock port {port}")]
    Refused { port: u32 },
    /// No answer.
    #[error("the guest did not answer on vsock port {port} within {after:?}")]
    TimedOut { port: u32, after: Duration },
    /// See [`super::Vsock::scripted`].
    #[error("the machine runs deterministically: nothing can be asked of it but what it was started with")]
    Scripted,
    /// Over the limit.
    #[error("{MAX_CONNECTIONS} connections to the guest are open: close some")]
    TooMany,
    /// The host has no more file descriptors, threads or memory.
    #[error("cannot connect to the guest: {0}")]
    Host(#[from] io::Error),
}

/// Why nobody listens on the host.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Somebody does already.
    #[error("host vsock port {port} is taken")]
    Taken { port: u32 },
    /// The host has no more file descriptors or threads.
    #[error("cannot listen for the guest: {0}")]
    Host(#[from] io::Error),
}

/// Opens streams to the guest and takes those that it opens. Cloning is cheap; callable from any
/// thread. The first use starts the device's one I/O thread.
#[derive(Clone)]
pub struct VsockHandle {
    shared: Arc<Shared>,
}

impl VsockHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Connects to a port that something in the guest listens on; waits at most `timeout` for the
    /// guest's answer (a machine that is paused answers when it goes on). The stream is an
    /// ordinary blocking one: closing it, or its writing half, is what the guest sees.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect(&self, port: u32, timeout: Duration) -> Result<UnixStream, ConnectError> {
        if lock(&self.shared.state).table.scripted {
            return Err(ConnectError::Scripted);
        }
        self.start_io()?;
        let (waiter, answer) = sync_channel(1);
        let (token, theirs) = self.ask(port, waiter)?;
        match answer.recv_timeout(timeout) {
            Ok(_) => Ok(theirs),
            Err(RecvTimeoutError::Disconnected) => Err(ConnectError::Refused { port }),
            Err(RecvTimeoutError::Timeout) => {
                let made = self.shared.with(|state| state.table.give_up(token));
                if made { Ok(theirs) } else { Err(ConnectError::TimedOut { port, after: timeout }) }
            }
        }
    }

    /// Asks for a connection and does not wait for the guest: what is written to the stream reaches it with its
    /// first answer. A guest that refuses, or ends, closes the stream. For a machine that is about to run; once it
    /// does, [`VsockHandle::start_io`] must be called.
    ///
    /// # Errors
    /// [`ConnectError`], but for the guest's own answer.
    pub fn begin(&self, port: u32) -> Result<UnixStream, ConnectError> {
        // Nobody waits for the answer.
        let (waiter, _) = sync_channel(1);
        self.ask(port, waiter).map(|(_, theirs)| theirs)
    }

    fn ask(&self, port: u32, waiter: SyncSender<bool>) -> Result<(u64, UnixStream), ConnectError> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let token = self.shared.with(|state| {
            if state.closed || state.world.is_none() {
                return Err(ConnectError::NotReady { port });
            }
            state.table.connect(port, ours, waiter).ok_or(ConnectError::TooMany)
        })?;
        Ok((token, theirs))
    }

    /// Starts the device's I/O thread, if it does not run yet.
    ///
    /// # Errors
    /// The host has no more file descriptors or threads.
    pub fn start_io(&self) -> io::Result<()> {
        self.shared.start_io()
    }

    /// Calls `accept` with a stream for each connection that the guest opens to `port` of the
    /// host. It is called on a vCPU or I/O thread and must be short: hand the
    /// stream on.
    /// Connections to ports without a listener are reset. Listeners outlive resets of the guest.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(
        &self,
        port: u32,
        accept: impl Fn(UnixStream) + Send + Sync + 'static,
    ) -> Result<(), ListenError> {
        self.shared.start_io()?;
        let free = self.shared.with(|state| state.table.listen(port, Arc::new(accept)));
        if free { Ok(()) } else { Err(ListenError::Taken { port }) }
    }

    /// The machine has ended: all streams end, and there will be no others.
    pub fn close(&self) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        state.table.clear();
    }

    /// Stops listening; connections that were accepted stay.
    pub fn unlisten(&self, port: u32) {
        self.shared.with(|state| state.table.unlisten(port));
    }
}
