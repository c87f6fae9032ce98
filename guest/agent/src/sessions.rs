//! What the loop does with processes: start them, move their bytes, notice their end.

use crate::agent::{Agent, Deadline, now_ms};
use crate::conn::{Conn, HIGH_WATER, Role};
use crate::poll::{Interest, Token};
use crate::session::{Input, Kept, Output, Session, output_token};
use crate::spawn::{Program, Spawned, Stdio, outcome, prepare, spawn};
use crate::world::World;
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{
    AgentState, ErrorKind, ExecSpec, Exit, Failure, Frame, MAX_DATA, SERVICE_SESSION, SessionInfo,
    SignalSpec, Started, WinSize,
};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitStatus};
use rustix::termios::Winsize;
use std::collections::VecDeque;
use std::io;

/// How long a terminal's output is waited for after its process ended while descendants hold it open.
const LAST_OUTPUT_MS: u64 = 100;
/// So many sessions that ended are remembered, for hosts that ask later how.
const ENDED_KEPT: usize = 64;
/// Sessions at once.
const SESSIONS: usize = 4096;

/// The agent's ends of a process's streams, then the process's.
type Streams = (Option<OwnedFd>, [Option<(OwnedFd, FrameKind)>; 2], Stdio);

fn failed(what: &str, error: impl Into<io::Error>) -> Failure {
    Failure::new(ErrorKind::Other, format!("{what}: {}", error.into()))
}

/// Makes the streams of a process as asked for.
fn streams(world: &World, spec: &ExecSpec, program: &Program) -> io::Result<Streams> {
    if let Some(size) = spec.tty {
        return terminal(size, program);
    }
    let nonblocking = |fd: &OwnedFd| rustix::io::ioctl_fionbio(fd, true);
    let (out, out_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err, err_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let (input, in_end) = if spec.stdin {
        let (end, input) = pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&input)?;
        (Some(input), end)
    } else {
        (None, world.null()?)
    };
    nonblocking(&out)?;
    nonblocking(&err)?;
    let outputs = [Some((out, FrameKind::Stdout)), Some((err, FrameKind::Stderr))];
    Ok((input, outputs, Stdio::Pipes([in_end, out_end, err_end])))
}

fn terminal(size: WinSize, program: &Program) -> io::Result<Streams> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // The instance's own multiplexer: /dev/ptmx may be missing in a root or belong to another devpts.
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())
        .or_else(|_| rustix::fs::open("/dev/ptmx", flags, Mode::empty()))?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    // The group stays as devpts was mounted with (tty).
    let _ = rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(program.who.uid)), None);
    set_size(&master, size);
    let input = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
    Ok((Some(input), [Some((master, FrameKind::Stdout)), None], Stdio::Terminal(slave)))
}

fn set_size(terminal: &OwnedFd, size: WinSize) {
    if (size.rows, size.columns) != (0, 0) {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(terminal, size);
    }
}

impl Agent {
    /// Serves `Exec`; while the machine is frozen, later. (A host may ask for a process together with the restore,
    /// without waiting for it.)
    ///
    /// # Errors
    /// What keeps the process from being made; a program that cannot be executed is reported later.
    pub fn exec(&mut self, conn: u64, spec: ExecSpec) -> Result<(), Failure> {
        if matches!(self.state, AgentState::Freezing | AgentState::Frozen) {
            if let Some(conn) = self.conns.get_mut(&conn) {
                conn.role = Role::Held(Box::new(spec));
                conn.paused = true;
            }
            return Ok(());
        }
        self.must_run()?;
        let id = self.fresh_id();
        self.start(id, Some(conn), &spec)?;
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = Role::Attached(id);
        }
        Ok(())
    }

    /// Starts the processes that were asked for while the machine was frozen.
    pub fn start_held(&mut self) {
        let held = |conn: &Conn| matches!(conn.role, Role::Held(_)) && !conn.dead;
        let ids: Vec<u64> = self.conns.iter().filter(|(_, conn)| held(conn)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            let Role::Held(spec) = std::mem::replace(&mut conn.role, Role::Fresh) else { continue };
            conn.paused = false;
            self.touched.push(id);
            match self.exec(id, *spec) {
                // Input that came with the request.
                Ok(()) => self.frames(id),
                Err(failure) => self.fail(id, &failure),
            }
        }
    }

    /// Makes a process and its session `id`.
    ///
    /// # Errors
    /// As [`Agent::exec`].
    pub fn start(&mut self, id: u64, conn: Option<u64>, spec: &ExecSpec) -> Result<(), Failure> {
        if self.sessions.len() >= SESSIONS {
            return Err(Failure::new(ErrorKind::Busy, format!("{SESSIONS} processes were started already")));
        }
        let program = prepare(&self.world, spec)?;
        let made = streams(&self.world, spec, &program)
            .map_err(|error| failed("making the streams of a process", error))?;
        let (input, [out, err], stdio) = made;
        let spawned =
            spawn(&self.world, &program, &stdio, true).map_err(|error| failed("making a process", error))?;
        drop(stdio);
        let Spawned { pid, status } = spawned;
        let output = |made: Option<(OwnedFd, FrameKind)>| {
            made.map(|(fd, kind)| Output { fd, kind, left: None, interest: Interest::default() })
        };
        let command: String = spec.argv.join(" ").chars().take(256).collect();
        let mut session = Session {
            pid,
            command,
            directory: spec.cwd.clone().unwrap_or_default(),
            tty: spec.tty.is_some(),
            keep: spec.keep,
            service: id == SERVICE_SESSION,
            conn,
            starting: Some(status),
            starting_interest: Interest::default(),
            outputs: [output(out), output(err)],
            input: input.map(|fd| Input {
                fd,
                queue: VecDeque::new(),
                end: false,
                interest: Interest::default(),
            }),
            exit: None,
            kept: Kept::default(),
        };
        if let Some(status) = &session.starting {
            self.poller.set(status, Token::Start(id), &mut session.starting_interest, Interest::READ);
        }
        self.sessions.insert(id, session);
        Ok(())
    }

    /// The exec of a session's program succeeded or failed.
    pub fn start_event(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(status) = session.starting.take() else { return };
        self.poller.set(&status, Token::Start(id), &mut session.starting_interest, Interest::default());
        let conn = session.conn;
        let word = session.command.split(' ').next().unwrap_or_default();
        match outcome(&status, word, &session.directory) {
            Ok(()) => {
                let started =
                    Started { session: id, pid: session.pid.as_raw_nonzero().get().cast_unsigned() };
                let service = session.service;
                session.conn = conn.filter(|_| !service);
                if let (Some(conn), Ok(bytes)) = (conn, frame::encode(FrameKind::Started, &started)) {
                    if service {
                        self.finish(conn, &bytes);
                    } else {
                        self.send(conn, &bytes);
                    }
                }
                self.watch_outputs(id);
                self.check_end(id);
            }
            Err(failure) => {
                self.drop_session(id);
                if let Some(conn) = conn {
                    self.fail(conn, &failure);
                }
            }
        }
    }

    /// Watches a session's outputs unless its host is slow to take what was read.
    pub fn watch_outputs(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let room =
            session.conn.and_then(|conn| self.conns.get(&conn)).is_none_or(|conn| conn.queued() < HIGH_WATER);
        let want = if room && session.starting.is_none() { Interest::READ } else { Interest::default() };
        for (which, output) in session.outputs.iter_mut().enumerate() {
            if let Some(output) = output {
                self.poller.set(&output.fd, output_token(id, which), &mut output.interest, want);
            }
        }
    }

    /// A session's output has bytes or is at its end.
    pub fn output_event(&mut self, id: u64, which: usize) {
        const BODY: usize = frame::HEADER;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(output) = session.outputs.get_mut(which).and_then(Option::as_mut) else { return };
        let kind = output.kind;
        let room =
            output.left.map_or(MAX_DATA, |left| MAX_DATA.min(usize::try_from(left).unwrap_or(MAX_DATA)));
        self.scratch.resize(BODY + MAX_DATA, 0);
        let Some(target) = self.scratch.get_mut(BODY..BODY + room) else { return };
        match rustix::io::read(&output.fd, target) {
            Ok(n) if n > 0 => {
                output.left = output.left.map(|left| left.saturating_sub(n as u64));
                if let Some(head) = self.scratch.get_mut(..BODY) {
                    head.copy_from_slice(&frame::header(kind, n));
                }
                let mut scratch = std::mem::take(&mut self.scratch);
                self.deliver(id, kind, scratch.get(..BODY + n).unwrap_or_default());
                std::mem::swap(&mut self.scratch, &mut scratch);
            }
            Err(Errno::AGAIN | Errno::INTR) => return,
            // A terminal's end is EIO.
            Ok(_) | Err(_) => self.close_output(id, which),
        }
        self.check_end(id);
    }

    /// Gives a whole output frame to whoever takes the session's output.
    fn deliver(&mut self, id: u64, kind: FrameKind, whole: &[u8]) {
        let bytes = whole.get(frame::HEADER..).unwrap_or_default();
        let Some(session) = self.sessions.get(&id) else { return };
        let conn = session.conn;
        let taken = conn.is_some_and(|conn| self.send(conn, whole));
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.keep_output(kind, bytes, taken);
        if session.service {
            self.log_output(kind, bytes);
        }
        self.watch_outputs(id);
    }

    fn close_output(&mut self, id: u64, which: usize) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(place) = session.outputs.get_mut(which) else { return };
        if let Some(mut output) = place.take() {
            self.poller.set(&output.fd, output_token(id, which), &mut output.interest, Interest::default());
        }
    }

    /// A frame from a session's host.
    pub fn session_frame(&mut self, conn: u64, id: u64, frame: Frame) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let result = match frame.kind {
            FrameKind::Stdin => {
                if let Some(input) = session.input.as_mut().filter(|input| !input.end) {
                    input.queue.extend(frame.payload);
                }
                self.input_event(id);
                Ok(())
            }
            FrameKind::StdinEof => {
                self.end_input(id);
                Ok(())
            }
            FrameKind::Resize => frame.decode().map(|size| {
                if let Some(output) = session.outputs.first().and_then(Option::as_ref).filter(|_| session.tty)
                {
                    set_size(&output.fd, size);
                }
            }),
            FrameKind::Signal => frame.decode().map(|signal| {
                // A process that ended meanwhile cannot be signalled, and its host is being told so.
                let _ = self.signal(id, signal);
            }),
            _ => Err(agent_protocol::ProtocolError::BadPayload(frame.kind as u8)),
        };
        if let Err(error) = result {
            self.fail(conn, &Failure::new(ErrorKind::BadRequest, error.to_string()));
        }
    }

    fn end_input(&mut self, id: u64) {
        /// What a terminal in its usual mode takes as the end of input (VEOF).
        const END_OF_TRANSMISSION: u8 = 4;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if let Some(input) = session.input.as_mut() {
            if session.tty {
                input.queue.push_back(END_OF_TRANSMISSION);
            } else {
                input.end = true;
            }
        }
        self.input_event(id);
    }

    /// A session's input has room, or has something new to take.
    pub fn input_event(&mut self, id: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let conn = session.conn;
        let mut blocked = false;
        if let Some(input) = session.input.as_mut() {
            let mut broken = false;
            while !input.queue.is_empty() && !blocked && !broken {
                match rustix::io::write(&input.fd, input.queue.as_slices().0) {
                    Ok(n) => drop(input.queue.drain(..n)),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => blocked = true,
                    Err(_) => broken = true,
                }
            }
            let want = if blocked { Interest::WRITE } else { Interest::default() };
            self.poller.set(&input.fd, Token::In(id), &mut input.interest, want);
            if broken || (input.end && input.queue.is_empty()) {
                session.input = None;
            } else if input.queue.is_empty() {
                input.queue = VecDeque::new();
            }
        }
        self.pause(conn, blocked);
    }

    /// Stops or resumes reading from a session's host.
    fn pause(&mut self, conn: Option<u64>, blocked: bool) {
        let Some(id) = conn else { return };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let resumed = conn.paused && !blocked;
        conn.paused = blocked;
        self.touched.push(id);
        if resumed {
            self.frames(id);
        }
    }

    /// A child that is no forked copy ended: a session's process, or an orphan that only had to be reaped.
    pub fn process_ended(&mut self, pid: Pid, status: WaitStatus) {
        let found =
            self.sessions.iter_mut().find(|(_, session)| session.pid == pid && session.exit.is_none());
        let Some((id, session)) = found else { return };
        let id = *id;
        let byte = |value: Option<i32>| value.and_then(|value| u8::try_from(value).ok());
        session.exit = Some(match byte(status.terminating_signal()) {
            Some(signal) => Exit::Signal(signal),
            None => Exit::Code(byte(status.exit_status()).unwrap_or(255)),
        });
        if !session.started() {
            // Its report is read first: it says why there was nothing to run.
            return self.start_event(id);
        }
        let tty = session.tty;
        for output in session.outputs.iter_mut().flatten() {
            // Everything it wrote is in the pipe already. A terminal's bytes may still be on their way.
            output.left = if tty { None } else { rustix::io::ioctl_fionread(&output.fd).ok() };
        }
        if tty && session.outputs.iter().any(Option::is_some) {
            self.deadlines.push((now_ms() + LAST_OUTPUT_MS, Deadline::LastOutput(id)));
        }
        self.check_end(id);
    }

    /// Stops waiting for the last output of a session that ended.
    pub fn last_output(&mut self, id: u64) {
        self.close_output(id, 0);
        self.close_output(id, 1);
        self.check_end(id);
    }

    /// Closes outputs with nothing left to read and, when all are, tells the end.
    pub fn check_end(&mut self, id: u64) {
        for which in 0..2 {
            let Some(session) = self.sessions.get(&id) else { return };
            let output = session.outputs.get(which).and_then(Option::as_ref);
            if session.exit.is_some() && output.is_some_and(|output| output.left == Some(0)) {
                self.close_output(id, which);
            }
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (true, Some(exit)) = (session.finished() && session.started(), session.exit) else { return };
        session.input = None;
        let service = session.service;
        let is_there = |id: &u64| self.conns.get(id).is_some_and(|conn| !conn.dead);
        let conn = session.conn.take().filter(is_there);
        if conn.is_some() {
            // What the host has seen is not shown again.
            session.kept = Kept::default();
        }
        if let Ok(bytes) = frame::encode(FrameKind::Exit, &exit) {
            let waiting = |role: &Role| matches!(role, Role::Waiting(session) if *session == id);
            let waiters = self.conns.iter().filter(|(_, conn)| waiting(&conn.role)).map(|(id, _)| *id);
            for conn in waiters.chain(conn).collect::<Vec<_>>() {
                self.finish(conn, &bytes);
            }
        }
        if service {
            self.service_ended(exit);
        }
        self.forget_old();
    }

    /// Drops the oldest ended sessions beyond what is kept.
    fn forget_old(&mut self) {
        let ended = |session: &Session| session.finished() && session.conn.is_none() && !session.service;
        let old: Vec<u64> =
            self.sessions.iter().filter(|(_, session)| ended(session)).map(|(id, _)| *id).collect();
        for id in old.iter().take(old.len().saturating_sub(ENDED_KEPT)) {
            self.drop_session(*id);
        }
    }

    /// Forgets a session; closing its streams also ends what still reads or writes them.
    pub fn drop_session(&mut self, id: u64) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        for (which, output) in session.outputs.iter_mut().enumerate() {
            if let Some(output) = output {
                self.poller.set(
                    &output.fd,
                    output_token(id, which),
                    &mut output.interest,
                    Interest::default(),
                );
            }
        }
        if let Some(input) = &mut session.input {
            self.poller.set(&input.fd, Token::In(id), &mut input.interest, Interest::default());
        }
        if let Some(status) = &session.starting {
            self.poller.set(status, Token::Start(id), &mut session.starting_interest, Interest::default());
        }
    }

    /// A session's host is gone.
    pub fn detached(&mut self, conn: u64, id: u64, before_freeze: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.conn != Some(conn) {
            return;
        }
        session.conn = None;
        let abandon = !session.keep && !before_freeze && !session.service;
        if before_freeze {
            // The host may come back for it.
            session.keep = true;
        }
        if abandon {
            if let Some(mut input) = session.input.take_if(|_| !session.tty) {
                self.poller.set(&input.fd, Token::In(id), &mut input.interest, Interest::default());
            }
            if session.exit.is_none() {
                let _ = signal_group(session.pid, Signal::HUP);
            }
        }
        self.watch_outputs(id);
        self.check_end(id);
    }

    /// Serves `Kill`.
    ///
    /// # Errors
    /// `NoSuchSession`, or a number that is no signal.
    pub fn kill(&mut self, conn: u64, id: u64, signal: SignalSpec) -> Result<(), Failure> {
        self.signal(id, signal)?;
        self.reply(conn, &agent_protocol::Reply::Done);
        Ok(())
    }

    fn signal(&self, id: u64, spec: SignalSpec) -> Result<(), Failure> {
        let session = self.sessions.get(&id).filter(|session| session.exit.is_none());
        let session = session.ok_or_else(|| no_session(id))?;
        let signal = crate::sys::signals::from_number(spec.signal)
            .ok_or_else(|| Failure::new(ErrorKind::BadRequest, format!("{} is no signal", spec.signal)))?;
        let sent = if spec.group {
            signal_group(session.pid, signal)
        } else {
            rustix::process::kill_process(session.pid, signal)
        };
        sent.map_err(|error| failed("signalling the process", error))
    }

    /// Serves `Wait`.
    ///
    /// # Errors
    /// `NoSuchSession`.
    pub fn wait_for(&mut self, conn: u64, id: u64) -> Result<(), Failure> {
        let session = self.sessions.get(&id).ok_or_else(|| no_session(id))?;
        if let (true, Some(exit)) = (session.finished(), session.exit) {
            let bytes = frame::encode(FrameKind::Exit, &exit).unwrap_or_default();
            self.finish(conn, &bytes);
        } else if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = Role::Waiting(id);
        }
        Ok(())
    }

    /// All sessions.
    pub fn session_list(&self) -> Vec<SessionInfo> {
        self.sessions.iter().map(|(id, session)| session.info(*id)).collect()
    }

    /// Whether the main service runs.
    pub fn service_runs(&self) -> bool {
        self.sessions.get(&SERVICE_SESSION).is_some_and(|session| session.exit.is_none())
    }
}

/// Signals a session's process group; a copy that has not made its group yet is signalled itself.
///
/// # Errors
/// `SRCH` when it ended, `PERM`.
pub fn signal_group(leader: Pid, signal: Signal) -> Result<(), Errno> {
    match rustix::process::kill_process_group(leader, signal) {
        Err(Errno::SRCH) => rustix::process::kill_process(leader, signal),
        sent => sent,
    }
}

/// The failure to name a session that is not there.
pub fn no_session(id: u64) -> Failure {
    Failure::new(ErrorKind::NoSuchSession, format!("there is no running session {id} in the guest"))
}
