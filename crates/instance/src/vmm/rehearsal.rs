//! Waking a machine once for many.
//!
//! Problem: each of many copies would find out the same about the guest's code, while it wakes.
//!
//! Strategy: the process that the copies are split off from brings the machine back once, lets it wake, throws it away
//! and keeps what the engine learnt ([`machine::Template`]).
//!
//! Invariants: nobody sees it. It has no network, no ports, no folders and no volumes, and a disk and memory that are gone
//! with it; what the guest does meanwhile has never happened. When it is over, its threads are, too.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::{Client, ClientError, RestoreReason};
use artifact::MachineFile;
use host::Rendezvous;
use machine::Template;

use super::{Vmm, VmmOptions, Waking};
use crate::error::Error;
use crate::media::Media;
use crate::net::NetOptions;

/// How long a rehearsed command may take: all copies wait for it. A first command takes 35 ms on a 2-core machine, and
/// what most copies do first in it is done early.
const COMMAND: Duration = Duration::from_millis(5);

/// A frozen machine to bring back.
pub struct Frozen<'a> {
    pub file: &'a MachineFile,
    /// What was read of it already.
    pub template: Option<Template>,
}

impl<'a> From<&'a MachineFile> for Frozen<'a> {
    fn from(file: &'a MachineFile) -> Self {
        Self { file, template: None }
    }
}

/// What a process that was split off has of its own, where all else is as in the process that it was split off from.
pub struct Own {
    /// The guest's host name.
    pub hostname: String,
    /// See [`VmmOptions::scratch_dir`].
    pub scratch_dir: PathBuf,
    /// See [`VmmOptions::kernel_log`].
    pub kernel_log: PathBuf,
    /// See [`VmmOptions::gate`].
    pub gate: fn(&str),
    /// See [`VmmOptions::together`].
    pub together: Option<Arc<Rendezvous>>,
}

impl Vmm {
    /// See [`machine::Machine::foretold_now`].
    pub fn foretold_now(&self) {
        self.machine.foretold_now();
    }

    /// Makes a machine that [`Vmm::restore`] brought back, before processes were split off, that of one of them.
    pub fn become_own(&mut self, own: Own) {
        self.begun = Instant::now();
        self.machine.keep_disk_in(&own.scratch_dir);
        self.console.keep_in(&own.kernel_log);
        let options = &mut self.options;
        (options.hostname, options.gate) = (Some(own.hostname), Some(own.gate));
        options.together = own.together;
        (options.scratch_dir, options.kernel_log) = (own.scratch_dir, Some(own.kernel_log));
    }
}

impl Media {
    /// Reads what all machines that are brought back from `from` have in common.
    ///
    /// # Errors
    /// The files'.
    pub fn template(&self, from: &MachineFile) -> Result<Template, Error> {
        Ok(Template::read(from, self.parent_of(from)?, self.spec.memory)?)
    }

    /// [`Media::template`], with what the engine learns when the machine in `from` wakes for at most `limit`.
    ///
    /// # Errors
    /// What stands in the way of bringing it back.
    pub fn rehearse(
        &self,
        from: &MachineFile,
        options: VmmOptions,
        limit: Duration,
    ) -> Result<Template, Error> {
        let mut template = self.template(from)?;
        let (vmm, waking) = Vmm::wake(self, from, RestoreReason::Fork, options.alone(), |_| Ok(()))?;
        // An agent that is not done by then has shown most of what it does.
        let _ = waking.finish_within(limit).and_then(|()| vmm.run_a_command(limit.min(COMMAND)));
        vmm.machine.pause()?;
        template.learn(&vmm.machine);
        Ok(template)
    }
}

impl VmmOptions {
    /// The same for a machine that nobody sees.
    pub(super) fn alone(self) -> Self {
        // Each by name: what is added to the options has to be thought of here.
        Self {
            engine: self.engine,
            force_template: self.force_template,
            tsc_khz: self.tsc_khz,
            scratch_dir: self.scratch_dir,
            boot_timeout: self.boot_timeout,
            hostname: self.hostname,
            hooks: self.hooks,
            repeatable: self.repeatable,
            command_line: String::new(),
            kernel_log: None,
            gate: None,
            together: None,
            net: NetOptions { switch: Some(false), ..NetOptions::default() },
            peers: None,
            watch: None,
            folders: Vec::new(),
            volumes: Vec::new(),
        }
    }
}

impl Vmm {
    /// Has the agent run a command that does nothing, as far as it comes in that time: then it has also seen the end of
    /// the connection before, and begun what most copies do first.
    fn run_a_command(&self, limit: Duration) -> Result<(), Error> {
        let stream = self.begin_connect()?;
        stream.set_read_timeout(Some(limit)).map_err(ClientError::Io)?;
        let mut client = Client::new(stream);
        // A root without it shows how a command is not found.
        client.run_through(&["true"])?;
        let _ = client.into_stream().read(&mut [0]).map_err(ClientError::Io)?;
        Ok(())
    }
}

impl Waking {
    pub(super) fn finish_within(self, limit: Duration) -> Result<(), Error> {
        let stream = self.client.into_stream();
        stream.set_read_timeout(Some(limit)).map_err(ClientError::Io)?;
        Self { client: Client::new(stream), ..self }.finish().map(drop)
    }
}
