//! Bytes from one file to another inside the kernel: shared where the file system can, copied where not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

/// How much goes through memory at a time where the kernel does not copy.
const BUFFER: usize = 1024 * 1024;

/// Makes `into`, an empty file, share all of `from`'s blocks (reflink); `false` where the file system cannot.
pub fn clone_file(from: &File, into: &File) -> io::Result<bool> {
    match ioctl_ficlone(into, from) {
        Ok(()) => Ok(true),
        // Each stands for "not here": no such ioctl, not these file systems, not between the two.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => Ok(false),
        // Some file systems and sandboxes answer so, too; the copy that follows says what is really wrong.
        Err(Errno::PERM | Errno::TXTBSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Copies `len` bytes of `from` at `from_at` to `into` at `into_at`. `each` hears of every piece.
///
/// `copy_file_range` shares blocks instead of copying where the file system can and both places are aligned
/// (copy_file_range(2), NOTES). Fewer bytes than `len` in `from` are [`io::ErrorKind::UnexpectedEof`].
pub fn copy_range(
    (from, from_at): (&File, u64),
    (into, into_at): (&File, u64),
    len: u64,
    mut each: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let (mut read_at, mut write_at, mut left) = (from_at, into_at, len);
    while left > 0 {
        // In pieces, so that the caller hears of progress and can end it.
        let piece = left.min(8 * BUFFER as u64) as usize;
        let copied = copy_file_range(from, Some(&mut read_at), into, Some(&mut write_at), piece);
        match copied {
            Ok(0) => return copy_by_hand((from, read_at), (into, write_at), left, each),
            Ok(copied) => {
                left = left.saturating_sub(copied as u64);
                each(copied as u64)?;
            }
            Err(Errno::INTR) => {}
            // Not between these files, or not by this kernel.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand((from, read_at), (into, write_at), left, each);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads and writes. Also what a `copy_file_range` of 0 bytes comes to: some file systems answer that for
/// files that have bytes; a file that really ends gives the error here.
fn copy_by_hand(
    (from, mut read_at): (&File, u64),
    (into, mut write_at): (&File, u64),
    mut left: u64,
    mut each: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
    while left > 0 {
        let piece = buffer.len().min(usize::try_from(left).unwrap_or(BUFFER));
        let bytes = &mut buffer[..piece];
        from.read_exact_at(bytes, read_at)?;
        into.write_all_at(bytes, write_at)?;
        read_at = read_at.saturating_add(piece as u64);
        write_at = write_at.saturating_add(piece as u64);
        left = left.saturating_sub(piece as u64);
        each(piece as u64)?;
    }
    Ok(())
}
