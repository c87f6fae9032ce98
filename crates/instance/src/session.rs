//! Joins this process's standard streams and a process of the guest.
//!
//! One thread carries standard input, one waits for signals; the caller's thread carries output
//! until the process ends. Output is written as it comes: stdout carries the command's bytes only.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use agent_protocol::{
    Client, ClientError, ErrorKind, ExecSpec, Exit, FrameKind, Request, SignalSpec, Started,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::error::Error;
use crate::terminal::{self, RawMode};

/// Keys that leave a session running: Ctrl-P Ctrl-Q, as in docker.
const DETACH: [u8; 2] = [0x10, 0x11];

/// How a session ended for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The process ended.
    Exited(Exit),
    /// The user pressed the detach keys; the process goes on.
    Detached,
}

impl Ending {
    /// The exit code to pass on; 0 after detaching.
    pub fn code(self) -> u8 {
        match self {
            Ending::Exited(exit) => exit.code(),
            Ending::Detached => 0,
        }
    }
}

/// What to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Start this process.
    Exec(ExecSpec),
    /// Join a process that was started earlier.
    Attach { session: u64, tty: bool, stdin: bool },
}

impl Target {
    /// The terminal's present size, for a spec with a terminal.
    pub fn window() -> agent_protocol::WinSize {
        terminal::size()
    }

    fn streams(&self) -> (bool, bool) {
        match self {
            Target::Exec(spec) => (spec.tty.is_some(), spec.stdin),
            Target::Attach { tty, stdin, .. } => (*tty, *stdin),
        }
    }

    fn request(&self) -> Request {
        match self {
            Target::Exec(spec) => Request::Exec(spec.clone()),
            Target::Attach { session, .. } => Request::Attach { session: *session, replay: true },
        }
    }
}

type Writer = Arc<Mutex<Client<UnixStream>>>;

/// Runs a session over a fresh connection to the agent, to its end.
///
/// # Errors
/// The agent's (its kind gives the exit code: 126, 127), the connection's.
pub fn attach(stream: UnixStream, target: &Target) -> Result<Ending, Error> {
    start(stream, target)?.join()
}

/// A session that was asked for; its process may not run yet.
pub struct Asked {
    client: Client<UnixStream>,
    stream: UnixStream,
    target: Target,
}

/// Sends the request for a session and does not wait.
///
/// # Errors
/// The connection's.
pub fn ask(stream: UnixStream, target: Target) -> Result<Asked, Error> {
    let mut client = Client::new(stream.try_clone().map_err(ClientError::Io)?);
    client.start(&target.request())?;
    Ok(Asked { client, stream, target })
}

impl Asked {
    /// Waits until the process runs.
    ///
    /// # Errors
    /// As [`attach`].
    pub fn started(mut self) -> Result<Session, Error> {
        let started = self.client.started()?;
        let writer = self.stream.try_clone().map_err(ClientError::Io)?;
        let (tty, stdin) = self.target.streams();
        let writer = Arc::new(Mutex::new(Client::new(writer)));
        Ok(Session {
            client: self.client,
            writer,
            stream: self.stream,
            tty,
            stdin,
            carries_signals: false,
            started,
        })
    }

    /// [`Asked::started`] for a request that went out together with the restore, after the agent's answer to that:
    /// an older agent refused it or cut it off, having started nothing, and is asked once more over `again`.
    ///
    /// # Errors
    /// As [`attach`].
    pub fn started_after_restore(
        self,
        again: impl FnOnce() -> Result<UnixStream, Error>,
    ) -> Result<Session, Error> {
        let target = self.target.clone();
        match self.started() {
            Err(Error::Agent(error)) if came_too_early(&error) => start(again()?, &target),
            other => other,
        }
    }
}

fn came_too_early(error: &ClientError) -> bool {
    match error {
        ClientError::Failed(failure) => failure.kind == ErrorKind::Busy,
        ClientError::Io(error) => {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        }
        _ => false,
    }
}

/// A session whose process runs.
pub struct Session {
    client: Client<UnixStream>,
    writer: Writer,
    stream: UnixStream,
    tty: bool,
    stdin: bool,
    carries_signals: bool,
    /// Which process it is.
    pub started: Started,
}

/// Starts a session: the process runs when this returns.
///
/// # Errors
/// As [`attach`].
pub fn start(stream: UnixStream, target: &Target) -> Result<Session, Error> {
    ask(stream, target.clone())?.started()
}

impl Session {
    /// From now on this process's signals are carried to the guest's; `join` does it if nobody did.
    pub fn take_signals(&mut self) {
        if !std::mem::replace(&mut self.carries_signals, true) {
            forward_signals(self.writer.clone(), self.tty);
        }
    }

    /// Carries streams until the process ends or the user detaches.
    ///
    /// # Errors
    /// As [`attach`].
    pub fn join(mut self) -> Result<Ending, Error> {
        self.take_signals();
        let raw = if self.tty { RawMode::enter().map_err(ClientError::Io)? } else { None };
        let detached = Arc::new(Mutex::new(false));
        if self.stdin {
            let (writer, stream) = (self.writer.clone(), self.stream.try_clone().map_err(ClientError::Io)?);
            let (detached, tty) = (detached.clone(), self.tty);
            spawn("stdin", move || carry_input(&writer, &stream, tty, &detached));
        }
        let ending = carry_output(&mut self.client);
        drop(raw);
        match ending {
            Err(_) if *bus::lock(&detached) => Ok(Ending::Detached),
            other => Ok(Ending::Exited(other?)),
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    // Without the thread the session still works one way; nothing better can be done here.
    let _ = thread::Builder::new().name(name.into()).stack_size(128 * 1024).spawn(work);
}

fn carry_output(client: &mut Client<UnixStream>) -> Result<Exit, ClientError> {
    loop {
        let frame = client.next_frame()?;
        match frame.kind {
            FrameKind::Stdout => put(&mut io::stdout(), &frame.payload),
            FrameKind::Stderr => put(&mut io::stderr(), &frame.payload),
            FrameKind::Exit => return Ok(frame.decode()?),
            other => return Err(ClientError::Unexpected(other)),
        }
    }
}

/// Output that nobody takes any more (a closed pipe) is dropped: the exit code still matters.
fn put(to: &mut impl Write, bytes: &[u8]) {
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}

fn carry_input(writer: &Writer, stream: &UnixStream, tty: bool, detached: &Mutex<bool>) {
    let mut buffer = [0u8; 32 * 1024];
    let mut last = 0u8;
    loop {
        let n = match io::stdin().read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        if tty && leaves(&mut last, bytes) {
            *bus::lock(detached) = true;
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        if bus::lock(writer).send_data(FrameKind::Stdin, bytes).is_err() {
            return;
        }
    }
    let _ = bus::lock(writer).send_mark(FrameKind::StdinEof);
}

/// Whether the detach keys are complete, over reads.
fn leaves(last: &mut u8, bytes: &[u8]) -> bool {
    for byte in bytes {
        if [*last, *byte] == DETACH {
            return true;
        }
        *last = *byte;
    }
    false
}

fn forward_signals(writer: Writer, tty: bool) {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH]) else { return };
    spawn("signals", move || {
        for signal in signals.forever() {
            let mut client = bus::lock(&writer);
            let sent = match signal {
                SIGWINCH if tty => client.send(FrameKind::Resize, &terminal::size()),
                SIGWINCH => Ok(()),
                other => client.send(FrameKind::Signal, &SignalSpec { signal: other as u8, group: true }),
            };
            if sent.is_err() {
                return;
            }
        }
    });
}
