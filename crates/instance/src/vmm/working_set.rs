//! Which pages a resume touches, found by one: what a build lays together (`snapshot/working_set.rs`).
//!
//! The machine that was just frozen is brought back once, in this process, without network, folders and volumes, until it
//! is ready and has run a command that does nothing; then it is thrown away. Nobody sees it, as in `rehearsal.rs`.

use std::time::Duration;

use agent_protocol::{Client, ClientError, RestoreReason};
use artifact::MachineFile;
use machine::EngineChoice;
use snapshot::Touched;

use super::{Vmm, VmmOptions, Waking};
use crate::error::Error;
use crate::media::Media;

impl Media {
    /// The pages that the machine frozen in `from` touches from its resume until it is ready and `then` is done, for at
    /// most `limit` each. What a guest does not do in that time is not among them.
    ///
    /// # Errors
    /// What stands in the way of bringing it back.
    pub fn working_set(
        &self,
        from: &MachineFile,
        options: VmmOptions,
        limit: Duration,
        then: impl FnOnce(&Vmm),
    ) -> Result<Touched, Error> {
        let template = self.template(from)?;
        template.note_touches()?;
        let options = VmmOptions { engine: EngineChoice::Soft, ..options.alone() };
        let frozen = super::Frozen { file: from, template: Some(template) };
        let vmm = Vmm::restore(self, frozen, options)?;
        let generation = vmm.machine.new_generation()?;
        vmm.machine.resume();
        // Nobody has told it yet that it was resumed, so its tasks stand still: what it touches is its kernel's and its
        // agent's, and all of it when the agent has answered.
        let stream = vmm.begin_connect()?;
        stream.set_read_timeout(Some(limit)).map_err(ClientError::Io)?;
        let answered = Client::new(stream).ping().is_ok();
        let waking = vmm.machine.touched().len();
        let client = vmm.send_restored(RestoreReason::Resume, generation)?;
        let told = Waking { client, begun: vmm.begun, first_instruction_us: 0 };
        if answered && told.finish_within(limit).is_ok() && vmm.wait_ready().is_ok() {
            then(&vmm);
        }
        vmm.machine.pause()?;
        let pages = vmm.machine.touched();
        vmm.machine.end();
        Ok(Touched { pages, waking })
    }
}
