//! What a machine's process answers to the other processes of its user.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use agent_protocol::SERVICE_SESSION;
use artifact::MachineFile;
use instance::control::{Asker, Handler, Request};
use instance::{Instance, KEPT_CODE, Phase, SnapshotTarget, Vmm};

use super::{Defaults, Home, SYNC_LIMIT};
use crate::ui::say::tell;
use crate::volumes;

/// Requests that end the machine and are not answered yet: the process stays until they are.
#[derive(Default)]
pub struct Ending {
    open: Mutex<usize>,
    changed: Condvar,
    /// Its time was over: the exit code is this.
    code: OnceLock<u8>,
}

impl Ending {
    fn add(&self, n: isize) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = open.saturating_add_signed(n);
        self.changed.notify_all();
    }

    /// The machine ends by itself, with this exit code whatever its processes have; [`Ending::done`] comes later.
    pub fn begin(&self, code: u8) {
        // The first that says so.
        let _ = self.code.set(code);
        self.add(1);
    }

    /// What was begun is over.
    pub fn done(&self) {
        self.add(-1);
    }

    /// The exit code of a process that ended with `code`.
    pub fn code(&self, code: u8) -> u8 {
        self.code.get().copied().unwrap_or(code)
    }

    /// Whether somebody asked for the machine's end.
    pub fn is_asked_for(&self) -> bool {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Waits until all are answered.
    pub fn settle(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let _open = self.changed.wait_while(open, |n| *n > 0).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Answers other processes that talk to this machine.
pub struct Control {
    pub vmm: Arc<Vmm>,
    pub instance: Arc<Instance>,
    pub ending: Arc<Ending>,
}

fn ends(request: &Request) -> bool {
    matches!(request, Request::Stop { .. } | Request::Kill | Request::Freeze)
}

impl Handler for Control {
    fn handle(
        &self,
        request: Request,
        asker: &Asker<'_>,
    ) -> Result<(serde_json::Value, Option<UnixStream>), instance::Error> {
        let ends = ends(&request);
        if ends {
            self.ending.add(1);
        }
        let answer = self.work(request, asker);
        if ends && answer.is_err() {
            self.ending.add(-1);
        }
        answer
    }

    fn answered(&self, request: &Request) {
        if ends(request) {
            if matches!(request, Request::Freeze) {
                self.keep_code();
            }
            self.vmm.machine().end();
            self.ending.add(-1);
        }
    }
}

impl Control {
    /// Keeps what the engine made of the guest's code, once it is frozen for sure. What fails costs the next start some
    /// time.
    fn keep_code(&self) {
        let kept = MachineFile::open_path(&self.instance.saved())
            .map_err(instance::Error::from)
            .and_then(|saved| self.vmm.keep_code(&self.instance.path(KEPT_CODE), &saved.id()));
        if let Err(error) = kept {
            tell!("smolvm: what was translated is not kept, so the next start is slower: {error}");
        }
    }

    fn work(
        &self,
        request: Request,
        asker: &Asker<'_>,
    ) -> Result<(serde_json::Value, Option<UnixStream>), instance::Error> {
        let done = serde_json::Value::Null;
        let wanted = || !asker.is_gone();
        match request {
            Request::Ping => Ok((done, None)),
            Request::Connect { port } => {
                self.vmm.wait_while_standing();
                let defaults = serde_json::to_value(Defaults::of(self.vmm.spec())).unwrap_or_default();
                Ok((defaults, Some(self.vmm.begin_connect_port(port)?)))
            }
            Request::Stop { grace_ms } => {
                self.vmm.stop(grace_ms, Some(&self.instance.saved()))?;
                // It was for what was frozen before, which is no more.
                let _ = std::fs::remove_file(self.instance.path(KEPT_CODE));
                note_saved(&self.instance, Phase::Stopped)?;
                Ok((done, None))
            }
            Request::Kill => {
                self.vmm.sync_volumes(SYNC_LIMIT);
                self.instance.update(|r| r.phase = Phase::Dead)?;
                Ok((done, None))
            }
            Request::Freeze => {
                let report =
                    self.vmm.freeze_to(&self.instance.saved(), SnapshotTarget::StateOnly, &|| true)?;
                volumes::remember(&self.instance, self.vmm.volumes())?;
                // Who starts it again goes on with what it is there for.
                let main = self.vmm.main().session;
                self.instance.update(|r| r.session = (main != SERVICE_SESSION).then_some(main))?;
                note_saved(&self.instance, Phase::Frozen)?;
                Ok((serde_json::to_value(report).unwrap_or_default(), None))
            }
            Request::Snapshot { path, incremental } => {
                let target = if incremental { SnapshotTarget::Incremental } else { SnapshotTarget::Whole };
                let report = self.vmm.snapshot_to(path.as_ref(), target, &wanted)?;
                Ok((serde_json::to_value(report).unwrap_or_default(), None))
            }
            Request::Fork { path, volumes } => {
                let report = self.vmm.fork_to(path.as_ref(), &volumes, &wanted)?;
                let mut report = serde_json::to_value(report).unwrap_or_default();
                // The copies need not look for an engine again.
                report["engine"] = self.vmm.machine().engine().to_string().into();
                Ok((report, None))
            }
            Request::Network => {
                let report = self.vmm.machine().network();
                Ok((serde_json::to_value(report).unwrap_or_default(), None))
            }
            Request::Drift => {
                let drift = self.vmm.machine().drift();
                Ok((serde_json::to_value(drift).unwrap_or_default(), None))
            }
            Request::Usage => {
                let usage = self.vmm.machine().usage();
                Ok((serde_json::to_value(usage).unwrap_or_default(), None))
            }
            Request::Balloon { keep } => {
                self.vmm.machine().balloon(keep).map_err(instance::Error::from)?;
                Ok((done, None))
            }
            Request::Engine => {
                let figures = self.vmm.machine().engine_figures().map_err(instance::Error::from)?;
                Ok((serde_json::to_value(figures).unwrap_or_default(), None))
            }
        }
    }
}

/// Notes that this machine's state or disk is saved. From then on its machine file is needed, whatever comes.
///
/// # Errors
/// The store's, the host's.
pub fn note_saved(instance: &Instance, phase: Phase) -> Result<(), instance::Error> {
    let refused = |error: &dyn std::fmt::Display| instance::Error::Refused(error.to_string());
    let home = Home::open().map_err(|e| refused(&e))?;
    let id = instance.record()?.file.parse().map_err(|_| refused(&"the record names no machine file"))?;
    let pin = home.store.pin(&id).map_err(|e| refused(&e))?;
    home.store.add_reference(&pin, &instance.path("")).map_err(|e| refused(&e))?;
    instance.update(|r| r.phase = phase)
}
