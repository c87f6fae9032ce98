//! A sparse file's copy: only the bytes that are there.

use std::fs::File;
use std::io;

use artifact::copy::copy_range;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Makes the empty file `to` the same as `from`.
///
/// # Errors
/// The host's.
pub(crate) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        at = seek(from, SeekFrom::Hole(start))?;
        copy_range((from, start), (to, start), at - start, |_| Ok(()))?;
    }
    Ok(())
}
