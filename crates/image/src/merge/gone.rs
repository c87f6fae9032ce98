//! Whiteouts that others are hard links to.
//!
//! The kernel makes one whiteout and links it to each name that is to be gone (fs/overlayfs/dir.c, since Linux 5.8), so
//! an archive has the first as a device and the others as links to it.

use std::collections::HashSet;

use crate::archive::ArchiveError;

/// Most bytes of their paths: 256 MiB, some million names.
const LIMIT: usize = 256 << 20;
/// What a path costs beside its bytes.
const COST: usize = 64;

/// Paths of the whiteouts so far.
#[derive(Default)]
pub struct Gone {
    paths: HashSet<Box<[u8]>>,
    cost: usize,
}

impl Gone {
    /// # Errors
    /// More than an honest machine takes away.
    pub fn add(&mut self, path: &[u8]) -> Result<(), ArchiveError> {
        self.cost += path.len() + COST;
        if self.cost > LIMIT {
            let what = "more names are taken away than any root has";
            return Err(ArchiveError::Damaged { at: 0, what });
        }
        self.paths.insert(path.into());
        Ok(())
    }

    pub fn has(&self, path: &[u8]) -> bool {
        self.paths.contains(path)
    }
}
