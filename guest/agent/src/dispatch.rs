//! From bytes on a connection to who serves them.

use crate::agent::Agent;
use crate::conn::Role;
use crate::poll::Ready;
use crate::{copy, stats};
use agent_protocol::frame::FrameKind;
use agent_protocol::{AgentState, ErrorKind, Failure, Frame, Pong, Reply, Request};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// Bytes read from a connection at once.
const READ_SIZE: usize = 64 << 10;

/// A clock in nanoseconds.
pub fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

impl Agent {
    /// A connection has bytes, has room, or is gone.
    pub fn conn_event(&mut self, id: u64, ready: Ready) {
        self.touched.push(id);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if ready.write {
            conn.flush();
        }
        if matches!(conn.role, Role::Worker(_)) {
            conn.dead |= ready.hangup;
            return;
        }
        let waits = match &conn.role {
            Role::Forward(forward) => !forward.wants_host(),
            _ => conn.paused,
        };
        if conn.finish || waits {
            // Nothing more is read; whoever hung up does not wait for the rest either. A forwarded connection's
            // end shows when it is written to.
            conn.dead |= ready.hangup && !matches!(conn.role, Role::Forward(_));
            return;
        }
        if !ready.read {
            return;
        }
        self.scratch.resize(READ_SIZE, 0);
        match rustix::io::read(&conn.fd, &mut self.scratch) {
            Ok(n) if matches!(conn.role, Role::Forward(_)) => {
                let scratch = std::mem::take(&mut self.scratch);
                self.forward_from_host(id, scratch.get(..n).unwrap_or_default());
                self.scratch = scratch;
            }
            Ok(0) => conn.dead = true,
            Ok(n) => {
                conn.decoder.push(self.scratch.get(..n).unwrap_or_default());
                self.frames(id);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => conn.dead = true,
        }
    }

    /// Takes the whole frames of a connection, as long as it is not paused or over.
    pub fn frames(&mut self, id: u64) {
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            if conn.paused || conn.finish || conn.dead || conn.raw() {
                return;
            }
            match conn.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => self.frame(id, frame),
                Err(error) => {
                    let failure = Failure::new(ErrorKind::BadRequest, error.to_string());
                    self.fail(id, &failure);
                    return;
                }
            }
        }
    }

    fn frame(&mut self, id: u64, frame: Frame) {
        let Some(conn) = self.conns.get(&id) else { return };
        match conn.role {
            Role::Fresh => self.first_frame(id, &frame),
            Role::Attached(session) => self.session_frame(id, session, frame),
            Role::Forward(_) => self.forward_datagram(id, &frame),
            _ => {
                let text = format!("a {:?} frame does not belong here", frame.kind);
                self.fail(id, &Failure::new(ErrorKind::BadRequest, text));
            }
        }
    }

    fn first_frame(&mut self, id: u64, frame: &Frame) {
        if frame.kind != FrameKind::Request {
            let text = format!("the first frame must be a request, not {:?}", frame.kind);
            return self.fail(id, &Failure::new(ErrorKind::BadRequest, text));
        }
        match frame.decode_request() {
            Ok(request) => {
                if let Err(failure) = self.request(id, request) {
                    self.fail(id, &failure);
                }
            }
            Err(error) => {
                let text = format!("{error}; this agent is {}", crate::options::VERSION);
                self.fail(id, &Failure::new(ErrorKind::Unsupported, text));
            }
        }
    }

    /// Serves one request; an error is sent to the host.
    fn request(&mut self, id: u64, request: Request) -> Result<(), Failure> {
        self.learn_of_freeze();
        match request {
            Request::Ping => {
                let pong = Reply::Pong(self.pong());
                self.reply(id, &pong);
                Ok(())
            }
            Request::Exec(spec) => self.exec(id, spec),
            Request::Sessions => {
                let list = Reply::Sessions(self.session_list());
                self.reply(id, &list);
                Ok(())
            }
            Request::Wait { session } => self.wait_for(id, session),
            Request::Kill { session, signal } => self.kill(id, session, signal),
            Request::Attach { session, replay } => self.attach(id, session, replay),
            Request::Service(spec) => self.service(id, &spec),
            Request::Logs(spec) => self.logs(id, spec),
            Request::Forward { port, transport } => self.forward(id, port, transport),
            Request::Stat { path, follow } => {
                self.work(id, move |world, channel| copy::stat(world, channel, &path, follow))
            }
            Request::CopyOut { path, follow } => {
                self.work(id, move |world, channel| copy::copy_out(world, channel, &path, follow))
            }
            Request::CopyIn { path, owner } => {
                self.work(id, move |world, channel| copy::copy_in(world, channel, &path, owner))
            }
            Request::ExportUpper => self.work(id, copy::export_upper),
            Request::Ready(spec) => self.ready(id, spec),
            Request::Freeze(spec) => self.freeze(id, spec),
            Request::Thaw => self.thaw(id),
            Request::Restored(spec) => self.restored(id, spec),
            Request::KernelLog { follow } => {
                self.work(id, move |_, channel| stats::kernel_log(channel, follow))
            }
            Request::Stats => {
                self.work(id, |world, channel| channel.reply(&Reply::Stats(stats::stats(world))))
            }
            Request::Sync => self.work(id, |_, channel| {
                rustix::fs::sync();
                channel.reply(&Reply::Done);
            }),
            Request::Shutdown { power, grace_ms } => self.shut_down(id, power, grace_ms),
            Request::Mount(mounts) => {
                self.must_run()?;
                self.work(id, move |world, channel| crate::mounts::serve(world, channel, &mounts))
            }
        }
    }

    fn pong(&self) -> Pong {
        Pong {
            version: crate::options::VERSION.to_string(),
            boot_id: crate::world::read_text("/proc/sys/kernel/random/boot_id").trim().to_string(),
            state: self.state,
            monotonic_ns: nanoseconds(ClockId::Monotonic),
            realtime_ns: nanoseconds(ClockId::Realtime),
            service: self.service_runs(),
            generation: self.generation,
        }
    }

    /// Refuses what must not start now.
    ///
    /// # Errors
    /// `Busy` unless the machine runs.
    pub fn must_run(&self) -> Result<(), Failure> {
        let why = match self.state {
            AgentState::Running => return Ok(()),
            AgentState::Freezing | AgentState::Frozen => "the machine is frozen",
            AgentState::ShuttingDown => "the machine is shutting down",
        };
        Err(Failure::new(ErrorKind::Busy, why))
    }
}
