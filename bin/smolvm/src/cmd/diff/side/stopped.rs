//! The files of a stopped machine, read from its disk on the host (docs/adr/0184).

use std::io;
use std::sync::Arc;

use anyhow::{Result, bail};
use artifact::MachineFile;
use disk::Disk;
use image::{ReadAt, Spool, Tree, merge_upper_of_disk};
use instance::Media;

use super::{AS_IT_IS, root};

/// Root image and disk as one; nothing when only a kernel can read the disk: its journal has to be played back, because
/// the machine did not end by itself, or its guest made another file system of it.
pub fn tree(name: &str, media: &Media, saved: &MachineFile, spool: &Spool) -> Result<Option<Tree>> {
    let disk = Arc::new(Readable(instance::saved_disk(saved)?));
    match merge_upper_of_disk(root(media)?, disk, spool, &AS_IT_IS) {
        Ok(tree) => Ok(Some(tree)),
        Err(error) if error.is_unknown() => Ok(None),
        Err(error) => bail!(
            "what `{name}` changed cannot be read from its disk in {}: {error}; \
             `smolvm start {name}` and compare it while it runs: its own kernel may read more",
            saved.path().display()
        ),
    }
}

struct Readable(Arc<dyn Disk>);

impl ReadAt for Readable {
    fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(offset, to)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }
}
