//! What a machine is there for: its service, or a command in its place or beside it (docs/adr/0181).

use std::sync::PoisonError;
use std::time::Duration;

use agent_protocol::{Client, ExecSpec, Request, SERVICE_SESSION, ServiceSpec, SignalSpec, Started};

use super::Vmm;
use crate::error::Error;

/// What every shutdown sends.
const TERM: u8 = 15;

/// Which of the guest's processes a machine is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Main {
    /// Its session; [`SERVICE_SESSION`] is the service.
    pub session: u64,
    /// It stands in the service's place: what the service is told before a stop, it is told.
    pub in_place: bool,
}

impl Default for Main {
    fn default() -> Self {
        Self { session: SERVICE_SESSION, in_place: true }
    }
}

impl Vmm {
    /// Which of its processes it is there for.
    pub fn main(&self) -> Main {
        *self.main.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it is there for another process than its service.
    pub fn set_main(&self, main: Main) {
        *self.main.lock().unwrap_or_else(PoisonError::into_inner) = main;
    }

    /// Starts the machine's service, with `env` and `workdir` over the definition's.
    ///
    /// # Errors
    /// The agent's: no such program, no such user.
    pub fn start_service(
        &self,
        env: &[(String, String)],
        workdir: Option<&str>,
    ) -> Result<Option<Started>, Error> {
        let Some(service) = &self.spec.service else { return Ok(None) };
        let exec = ExecSpec {
            argv: service.argv.clone(),
            env: service.env.iter().chain(env).cloned().collect(),
            cwd: workdir.map(str::to_owned).or_else(|| service.workdir.clone()),
            user: service.user.clone(),
            tty: None,
            stdin: false,
            keep: true,
        };
        Ok(Some(self.agent()?.service(ServiceSpec { exec, log_limit: 0 })?))
    }

    /// Starts a command in the place of the service, which the machine has none of or which was left out: its output
    /// is kept for `logs`, and whoever means the service means it.
    ///
    /// # Errors
    /// The agent's: no such program, no such user.
    pub fn start_command(&self, exec: ExecSpec) -> Result<Started, Error> {
        Ok(self.agent()?.service(ServiceSpec { exec, log_limit: 0 })?)
    }

    /// Gives the service, or the command in its place, its own stop signal, where it has one, and time to heed it.
    pub(super) fn ask_service(&self, grace_ms: u32) {
        let main = self.main();
        let session = if main.in_place { main.session } else { SERVICE_SESSION };
        let own = self.spec.service.as_ref().and_then(|service| service.stop_signal);
        // A command in an image that has none of its own is ended as the image says, too.
        let signal = own.or_else(|| self.spec.image.as_ref().and_then(|image| image.stop_signal));
        let Some(signal) = signal.filter(|signal| *signal != TERM) else { return };
        let kill = Request::Kill { session, signal: SignalSpec { signal, group: false } };
        // A service that ended already, or does not end: TERM and KILL come next in any case.
        let _ = self.agent().and_then(|mut agent| {
            agent.call(&kill)?;
            let stream = self.connect()?;
            let grace = Duration::from_millis(u64::from(grace_ms.max(1)));
            stream.set_read_timeout(Some(grace)).map_err(agent_protocol::ClientError::Io)?;
            Client::new(stream).wait(session)?;
            Ok(())
        });
    }
}
