//! A frozen instance as a machine file that stands alone: for another store, another host, somebody else.
//!
//! Nothing is resumed and nothing decoded: what `freeze` left has all pages and all changed clusters of its own, so
//! the file is its sections after those of the base, every byte checked on the way.

use std::path::Path;

use artifact::{CopyCheck, MachineFile, MachineFileWriter};
use snapshot::SnapshotInfo;

use crate::error::Error;
use crate::media::Media;
use crate::vmm::write_base;

/// Writes `saved`, what was frozen on `media`, to `path`; its length in bytes.
///
/// # Errors
/// A frozen state that builds on another file; a byte that is not what was written; the files'.
pub fn export_frozen(media: &Media, saved: &MachineFile, path: &Path) -> Result<u64, Error> {
    if let Some(parent) = saved.parent() {
        return Err(Error::Refused(format!(
            "{} holds only what changed since {parent}; start the instance and take its snapshot while it runs",
            saved.path().display()
        )));
    }
    let mut writer = MachineFileWriter::create(path)?;
    write_base(media.base(), &media.spec, &mut writer)?;
    if let Some(point) = &media.snapshot {
        let info = SnapshotInfo { root: 0, ..point.info.clone() };
        info.write(&mut writer, 0).map_err(machine::Error::from)?;
    }
    for section in saved.sections() {
        writer.copy_section(saved, section, CopyCheck::Rehash)?;
    }
    Ok(writer.finish()?.len)
}
