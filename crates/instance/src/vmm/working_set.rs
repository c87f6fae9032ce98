//! Which pages a resume touches, found by one: what a build lays together (`snapshot/working_set.rs`).
//!
//! The machine that was just frozen is brought back once, in this process, without network, folders and volumes, until it
//! is ready and has run a command that does nothing; then it is thrown away. Nobody sees it, as in `rehearsal.rs`.

use std::time::Duration;

use agent_protocol::RestoreReason;
use artifact::MachineFile;
use machine::EngineChoice;
use snapshot::Touched;

use super::{Vmm, VmmOptions};
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
        let (vmm, waking) = Vmm::wake(self, frozen, RestoreReason::Resume, options, |_| Ok(()))?;
        let woke = waking.finish_within(limit).is_ok();
        // Its tasks have gone on a moment ago: the first pages that they touched are among these.
        let waking = vmm.machine.touched().len();
        if woke && vmm.wait_ready().is_ok() {
            then(&vmm);
        }
        vmm.machine.pause()?;
        let pages = vmm.machine.touched();
        vmm.machine.end();
        Ok(Touched { pages, waking })
    }
}
