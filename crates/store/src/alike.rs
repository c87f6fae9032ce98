//! What two objects have in common is kept once, where the file system can share blocks.
//!
//! Problem: a snapshot repeats its base's kernel and root image, and files that come from elsewhere share no blocks with
//! what is here already. Strategy: a section whose digest an object of the store has, too, is copied from that object,
//! which shares the blocks; everything is verified afterwards as any copy is. On file systems that cannot share,
//! nothing is looked for (docs/adr/0126).

use std::collections::HashMap;
use std::fs::File;
use std::io;

use artifact::copy::copy_range;
use artifact::{Digest, MachineFile, Section, space};

use crate::error::{Error, Result};
use crate::pin::Pin;
use crate::root::Store;

/// Shorter sections are not looked for, bytes.
const WORTH: u64 = 64 << 10;

/// A section, an object that has it, and where.
pub(crate) type Known = (Section, File, u64);

/// Puts what objects have in the place of `file`'s own bytes, which are the same.
pub(crate) fn share(known: &[Known], file: &File) -> io::Result<()> {
    known.iter().try_for_each(|(section, object, at)| {
        copy_range((object, *at), (file, section.offset), section.len, |_| Ok(()))
    })
}

impl Store {
    /// Which sections of `source` objects of the store have, in the order of the file.
    pub(crate) fn sections_at_hand(&self, source: &MachineFile) -> Result<Vec<Known>> {
        let mut known = Vec::new();
        if !space::may_share(&self.made_part("tmp")?) {
            return Ok(known);
        }
        let large = source.sections().iter().filter(|section| section.len >= WORTH);
        let mut wanted: HashMap<Digest, &Section> = large.map(|section| (section.digest, section)).collect();
        for id in self.ids()? {
            if wanted.is_empty() {
                break;
            }
            let object = match self.pin_quietly(&id).and_then(|pin: Pin| pin.open()) {
                Ok(object) => object,
                // Gone meanwhile, or damaged: it is of no help.
                Err(Error::Gone { .. } | Error::File(_)) => continue,
                Err(error) => return Err(error),
            };
            for have in object.sections() {
                if let Some(section) = wanted.remove(&have.digest).filter(|section| section.len == have.len) {
                    let file = object.file().try_clone();
                    let file = file.map_err(|error| Error::io(object.path(), "use it again", error))?;
                    known.push((section.clone(), file, have.offset));
                }
            }
        }
        known.sort_by_key(|(section, ..)| section.offset);
        Ok(known)
    }
}
