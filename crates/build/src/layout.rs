//! A frozen machine's file, with the pages that its resume touches first laid together (docs/adr/0158).
//!
//! The machine is frozen into a file without a name, brought back from it once, and thrown away; then the file that
//! stays is written from the nameless one. Next: `instance/vmm/working_set.rs`, `snapshot/working_set.rs`.

use std::path::Path;
use std::time::Duration;

use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionKind, WriterOptions};
use instance::{FreezeReport, Media, SnapshotTarget, Touched, Vmm, VmmOptions, write_laid_out};

use crate::error::Error;
use crate::progress::Progress;
use crate::stage;

/// How long the guest may take to wake while it is watched. What comes later is read when it is touched.
const WAKING: Duration = Duration::from_secs(10);

/// A machine that was frozen.
pub(crate) struct Frozen {
    file: MachineFile,
    touched: Option<Touched>,
    pub(crate) report: FreezeReport,
}

/// Freezes the machine, which ends with it, into a file without a name beside `output`, and finds out what a resume
/// touches.
/// `media`: what it was booted from; `options`: what it was booted with.
pub(crate) fn freeze(
    vmm: &Vmm,
    media: &Media,
    options: &VmmOptions,
    output: &Path,
    progress: &dyn Progress,
) -> Result<Frozen, Error> {
    let temporary = WriterOptions { durable: false, ..WriterOptions::default() };
    let mut writer = MachineFileWriter::create_with(output, temporary)?;
    let report = vmm.freeze(&mut writer, SnapshotTarget::Whole)?;
    vmm.machine().end();
    let (file, ..) = writer.seal()?;
    let handle = file.file().try_clone().map_err(|error| artifact::Error::io(output, "open again", error))?;
    let file = MachineFile::open(handle, output)?;
    progress.detail("waking it once, to lay together what a resume touches");
    // What it does when it wakes is its own; a machine that cannot be watched is resumed all the same.
    let touched = media.working_set(&file, options.clone(), WAKING, |vmm| drop(stage::warm_up(vmm)));
    if let Err(error) = &touched {
        progress.warn(&format!("what a resume touches was not laid together: {error}"));
    }
    Ok(Frozen { file, touched: touched.ok(), report })
}

impl Frozen {
    /// Writes it all.
    pub(crate) fn write(&self, writer: &mut MachineFileWriter) -> Result<(), Error> {
        for section in self.file.sections() {
            match (section.kind(), &self.touched) {
                (Some(SectionKind::MemoryMap), Some(touched)) => {
                    write_laid_out(writer, &self.file, touched).map_err(instance::Error::from)?;
                }
                (Some(SectionKind::MemoryPages), Some(_)) => {}
                // Hashed when it was written, and nobody else has the file.
                _ => writer.copy_section(&self.file, section, CopyCheck::Trust)?,
            }
        }
        Ok(())
    }
}
