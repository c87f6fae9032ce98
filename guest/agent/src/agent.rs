//! The loop: one thread, epoll, and the tables of connections, sessions and forked copies.
//!
//! Handlers never close a connection themselves: they send, mark, and note the id in `touched`; [`Agent::settle`]
//! then closes, pauses or watches it. So a handler may hold ids, and no event meets a table in a half-done state.

use crate::conn::{Conn, Role};
use crate::freeze::Freezing;
use crate::log::Log;
use crate::poll::{Interest, Poller, Ready, Token};
use crate::session::Session;
use crate::world::World;
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{AgentState, Failure, Reply};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::io;

/// Connections at once; more wait in the listener's queue.
const CONNECTIONS: usize = 1024;
/// How long no connection is taken after taking one failed.
const ACCEPT_PAUSE_MS: u64 = 100;

/// What happens when a time is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadline {
    /// A session that ended stops waiting for its last output.
    LastOutput(u64),
    /// A connection's readiness check gives up.
    Ready(u64),
    /// Connections are taken again after that failed.
    Listen,
}

/// The whole agent.
pub struct Agent {
    /// The surroundings.
    pub world: World,
    /// What it is doing.
    pub state: AgentState,
    /// The watched descriptors.
    pub poller: Poller,
    /// Open connections.
    pub conns: BTreeMap<u64, Conn>,
    /// Processes.
    pub sessions: BTreeMap<u64, Session>,
    /// Forked copies and the connections they serve.
    pub workers: BTreeMap<i32, u64>,
    /// Connections to look at after the event.
    pub touched: Vec<u64>,
    /// What happens at a time (CLOCK_MONOTONIC, ms) unless something else came first.
    pub deadlines: Vec<(u64, Deadline)>,
    /// The main service's output.
    pub log: Log,
    /// Readiness checks that fail when the service ends, by connection.
    pub needs_service: Vec<u64>,
    /// The freeze that is under way.
    pub freezing: Option<Freezing>,
    /// The connection whose hooks run after a restore.
    pub restoring: Option<u64>,
    /// The connection that asked for the machine's end.
    pub ending: Option<u64>,
    /// The generation id of the last restore.
    pub generation: [u8; 16],
    /// For reading into; as long as a data frame with its header.
    pub scratch: Vec<u8>,
    next_id: u64,
    listener: OwnedFd,
    listening: Interest,
    children: OwnedFd,
}

/// CLOCK_MONOTONIC in milliseconds.
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1000).saturating_add(now.tv_nsec as u64 / 1_000_000)
}

/// Whether a running agent should look for more of the same event.
fn again(result: Result<bool, Errno>) -> bool {
    matches!(result, Ok(true) | Err(Errno::INTR))
}

impl Agent {
    /// An agent that takes connections from `listener`.
    ///
    /// # Errors
    /// The kernel's (no descriptors, no memory).
    pub fn new(listener: OwnedFd, world: World) -> io::Result<Agent> {
        let children = crate::sys::signals::child_events()?;
        let poller = Poller::new()?;
        let mut agent = Agent {
            world,
            state: AgentState::Running,
            poller,
            conns: BTreeMap::new(),
            sessions: BTreeMap::new(),
            workers: BTreeMap::new(),
            touched: Vec::new(),
            deadlines: Vec::new(),
            log: Log::default(),
            needs_service: Vec::new(),
            freezing: None,
            restoring: None,
            ending: None,
            generation: [0; 16],
            scratch: Vec::new(),
            next_id: 1,
            listener,
            listening: Interest::default(),
            children,
        };
        agent.listen();
        agent.poller.set(&agent.children, Token::Children, &mut Interest::default(), Interest::READ);
        Ok(agent)
    }

    /// Serves until the machine ends.
    pub fn run(&mut self) -> ! {
        loop {
            let timeout = self.next_timeout();
            for ready in self.poller.wait(timeout).unwrap_or_default() {
                self.handle(ready);
                self.settle_touched();
            }
            self.pass_deadlines();
            self.settle_touched();
        }
    }

    /// A number that no connection or session had before.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn next_timeout(&self) -> Option<u64> {
        let first = self.deadlines.iter().map(|(time, _)| *time).min()?;
        Some(first.saturating_sub(now_ms()))
    }

    fn handle(&mut self, ready: Ready) {
        match ready.token {
            Token::Listener => while again(self.accept()) {},
            Token::Children => self.reap(),
            Token::Conn(id) => self.conn_event(id, ready),
            Token::Start(id) => self.start_event(id),
            Token::Out(id) => self.output_event(id, 0),
            Token::Err(id) => self.output_event(id, 1),
            Token::In(id) => self.input_event(id),
            Token::Upstream(id) => self.upstream_event(id, ready),
        }
    }

    fn listen(&mut self) {
        let want = if self.conns.len() < CONNECTIONS { Interest::READ } else { Interest::default() };
        self.poller.set(&self.listener, Token::Listener, &mut self.listening, want);
    }

    fn accept(&mut self) -> Result<bool, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = match rustix::net::accept_with(&self.listener, flags) {
            Err(error) if !matches!(error, Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {
                // Out of descriptors or memory: asking again at once would only spin.
                self.poller.set(&self.listener, Token::Listener, &mut self.listening, Interest::default());
                self.deadlines.push((now_ms() + ACCEPT_PAUSE_MS, Deadline::Listen));
                return Err(error);
            }
            other => other?,
        };
        let id = self.fresh_id();
        self.conns.insert(id, Conn::new(fd));
        // The request is usually there already; without it nothing is lost.
        self.conn_event(id, Ready { token: Token::Conn(id), read: true, write: false, hangup: false });
        self.listen();
        Ok(self.conns.len() < CONNECTIONS)
    }

    /// Collects every child that ended: ours and orphans.
    fn reap(&mut self) {
        let mut signal = [0u8; 128];
        while rustix::io::read(&self.children, &mut signal).is_ok_and(|n| n > 0) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(conn) = self.workers.remove(&pid.as_raw_nonzero().get()) {
                self.worker_ended(conn, status);
            } else {
                self.process_ended(pid, status);
            }
        }
    }

    /// A forked copy ended: its connection is over, and if it died the host is told.
    fn worker_ended(&mut self, id: u64, status: WaitStatus) {
        self.touched.push(id);
        if self.freezing.as_ref().is_some_and(|freezing| freezing.conn == id) {
            self.freeze_ended();
        }
        if self.restoring == Some(id) {
            self.restoring = None;
            if status.exit_status() == Some(crate::restored::STAYS_FROZEN) {
                return;
            }
            // Done by the copy, unless it died.
            let _ = self.let_go();
        }
        self.needs_service.retain(|conn| *conn != id);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if status.exit_status() != Some(0) && !conn.dead {
            let text = format!("the agent's helper for this request failed ({status:?})");
            conn.send(&frame::encode_failure(&Failure::new(agent_protocol::ErrorKind::Other, text)));
        }
        conn.role = Role::Answered;
        conn.finish = true;
    }

    /// Looks at every connection that something happened to.
    pub fn settle_touched(&mut self) {
        while let Some(id) = self.touched.pop() {
            self.settle(id);
        }
    }

    fn settle(&mut self, id: u64) {
        match self.conns.get_mut(&id) {
            Some(Conn { role: Role::Logs { .. }, .. }) => self.feed_log_reader(id),
            Some(Conn { role: Role::ReadyLog(_), .. }) => self.check_log_watch(id),
            Some(conn) => crate::forward::pass_guest_end(conn),
            None => return,
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.dead || (conn.finish && conn.queued() == 0) {
            if let Some(conn) = self.conns.remove(&id) {
                self.closed(id, conn);
                self.listen();
            }
            return;
        }
        conn.watch(&self.poller, id);
        crate::forward::watch_upstream(conn, &self.poller, id);
        if let Role::Attached(session) = conn.role {
            self.watch_outputs(session);
        }
    }

    fn closed(&mut self, id: u64, mut conn: Conn) {
        conn.unwatch(&self.poller, id);
        self.needs_service.retain(|waiting| *waiting != id);
        match conn.role {
            Role::Attached(session) => self.detached(id, session, conn.before_freeze),
            // A shutdown goes on without whoever asked for it.
            Role::Worker(_) if self.ending == Some(id) => {}
            Role::Worker(pid) => {
                // Still in `workers`, to be reaped; its end then finds no connection.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            Role::Forward(mut forward) => crate::forward::unwatch_upstream(&mut forward, &self.poller, id),
            _ => {}
        }
    }

    /// Does what is due.
    fn pass_deadlines(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = now_ms();
        let (due, later): (Vec<_>, Vec<_>) = self.deadlines.drain(..).partition(|(time, _)| *time <= now);
        self.deadlines = later;
        for (_, deadline) in due {
            match deadline {
                Deadline::LastOutput(session) => self.last_output(session),
                Deadline::Ready(conn) => self.log_watch_over(conn),
                Deadline::Listen => self.listen(),
            }
        }
    }

    /// Sends bytes on a connection that may be gone; whether it takes them, now or later.
    pub fn send(&mut self, id: u64, bytes: &[u8]) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else { return false };
        conn.send(bytes);
        self.touched.push(id);
        !conn.dead
    }

    /// Sends the last words of an operation.
    pub fn finish(&mut self, id: u64, bytes: &[u8]) {
        self.send(id, bytes);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.finish = true;
            conn.role = Role::Answered;
        }
    }

    /// Answers and ends the operation.
    pub fn reply(&mut self, id: u64, reply: &Reply) {
        let bytes = frame::encode(FrameKind::Reply, reply).unwrap_or_else(|error| {
            frame::encode_failure(&Failure::new(agent_protocol::ErrorKind::Other, error.to_string()))
        });
        self.finish(id, &bytes);
    }

    /// Refuses and ends the operation.
    pub fn fail(&mut self, id: u64, failure: &Failure) {
        self.finish(id, &frame::encode_failure(failure));
    }
}
