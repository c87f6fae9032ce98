//! The main service, its log, and hosts that attach to what runs.

use crate::agent::Agent;
use crate::conn::{HIGH_WATER, Role};
use crate::dispatch::nanoseconds;
use crate::sessions::no_session;
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{
    ErrorKind, ExecSpec, Failure, LogRecord, LogStream, LogsSpec, SERVICE_SESSION, ServiceSpec, Started,
};
use rustix::time::ClockId;

impl Agent {
    /// Serves `Service`.
    ///
    /// # Errors
    /// `Busy` when one runs; as `Exec` otherwise.
    pub fn service(&mut self, conn: u64, spec: &ServiceSpec) -> Result<(), Failure> {
        self.must_run()?;
        if self.service_runs() {
            return Err(Failure::new(ErrorKind::Busy, "the machine's service runs already"));
        }
        self.drop_session(SERVICE_SESSION);
        self.log.set_limit(spec.log_limit);
        let exec = ExecSpec { keep: true, ..spec.exec.clone() };
        self.start(SERVICE_SESSION, Some(conn), &exec)?;
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = Role::Attached(SERVICE_SESSION);
        }
        Ok(())
    }

    /// Keeps a piece of the service's output and shows it to whoever follows.
    pub fn log_output(&mut self, kind: FrameKind, bytes: &[u8]) {
        let stream = if kind == FrameKind::Stderr { LogStream::Stderr } else { LogStream::Stdout };
        self.log.append(nanoseconds(ClockId::Realtime), stream, bytes);
        self.wake_log_readers();
    }

    /// Lets everyone who reads the log look again.
    pub fn wake_log_readers(&mut self) {
        let reads = |role: &Role| matches!(role, Role::Logs { .. } | Role::ReadyLog(_));
        let readers = self.conns.iter().filter(|(_, conn)| reads(&conn.role)).map(|(id, _)| *id);
        self.touched.extend(readers.collect::<Vec<_>>());
    }

    /// Serves `Logs`.
    ///
    /// # Errors
    /// None at present.
    pub fn logs(&mut self, conn: u64, spec: LogsSpec) -> Result<(), Failure> {
        let next = self.log.start(spec.tail, spec.since_ns);
        let until = if spec.follow { None } else { Some(self.log.end()) };
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = Role::Logs { next, until };
        }
        self.touched.push(conn);
        Ok(())
    }

    /// Sends a log reader what it has room for.
    pub fn feed_log_reader(&mut self, id: u64) {
        let ended = self.sessions.get(&SERVICE_SESSION).is_some_and(|session| session.finished());
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let queued = conn.queued();
        let Role::Logs { next, until } = &mut conn.role else { return };
        let mut bytes = Vec::new();
        while queued + bytes.len() < HIGH_WATER {
            let Some((at, record)) = self.log.from(*next) else { break };
            bytes.extend_from_slice(&LogRecord::encode(record.time_ns, record.stream, &record.bytes));
            *next = at + 1;
        }
        let end = self.log.end();
        // A reader that does not follow stops at what was there when it asked, however fast the service writes.
        let over = until.map_or(ended && *next >= end, |until| *next >= until);
        conn.send(&bytes);
        if over {
            self.finish(id, &frame::header(FrameKind::DataEnd, 0));
        }
    }

    /// Serves `Attach`.
    ///
    /// # Errors
    /// `NoSuchSession`.
    pub fn attach(&mut self, conn: u64, id: u64, replay: bool) -> Result<(), Failure> {
        let session =
            self.sessions.get_mut(&id).filter(|session| session.started()).ok_or_else(|| no_session(id))?;
        let before = session.conn.replace(conn);
        let kept = if replay { session.take_kept() } else { Vec::new() };
        let started = Started { session: id, pid: session.pid.as_raw_nonzero().get().cast_unsigned() };
        let blocked = session.input.as_ref().is_some_and(|input| !input.queue.is_empty());
        if let Some(before) = before {
            let text = "another host attached to this process";
            self.fail(before, &Failure::new(ErrorKind::Replaced, text));
        }
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = Role::Attached(id);
            conn.paused = blocked;
        }
        self.send(conn, &frame::encode(FrameKind::Started, &started).unwrap_or_default());
        for (kind, bytes) in kept {
            for piece in bytes.chunks(agent_protocol::MAX_DATA) {
                self.send(conn, &frame::encode_bytes(kind, piece).unwrap_or_default());
            }
        }
        self.watch_outputs(id);
        self.check_end(id);
        Ok(())
    }
}
