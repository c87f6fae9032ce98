//! Writing: an ustar header per entry, before it a pax header for what does not fit or would be lost.

use super::{BLOCK, Entry, Kind};
use std::io::{self, Read, Write};

/// Bytes copied at once.
const PIECE: usize = 64 << 10;

/// Writes an archive to `W`.
pub struct Writer<W> {
    out: W,
}

/// Puts an octal number that fits into a field, with its final NUL; false when it does not.
fn octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    if digits < 22 && value >> (3 * digits) != 0 {
        field.fill(b'0');
        return false;
    }
    for (place, byte) in field.iter_mut().take(digits).enumerate() {
        *byte = b'0' + (value >> (3 * (digits - 1 - place)) & 7) as u8;
    }
    true
}

fn text(field: &mut [u8], value: &[u8]) -> bool {
    for (place, byte) in field.iter_mut().zip(value) {
        *place = *byte;
    }
    value.len() <= field.len()
}

/// Computes a header's checksum anew.
pub fn fix_checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[148..155], sum);
    header[154] = 0;
}

/// A pax record: its length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The ustar header of an entry, and the pax records for what it could not hold.
fn header(entry: &Entry) -> ([u8; BLOCK], Vec<u8>) {
    let mut block = [0u8; BLOCK];
    let mut pax = Vec::new();
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory {
        path.push(b'/');
    }
    if !text(&mut block[..100], &path) {
        record(&mut pax, b"path", &path);
    }
    octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
    let numbers = [
        (108..116, u64::from(entry.uid), "uid"),
        (116..124, u64::from(entry.gid), "gid"),
        (124..136, entry.size, "size"),
    ];
    for (range, value, key) in numbers {
        if !octal(&mut block[range], value) {
            record(&mut pax, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = entry.mtime;
    let whole = u64::try_from(seconds).is_ok_and(|seconds| octal(&mut block[136..148], seconds));
    if !whole || nanoseconds != 0 {
        record(&mut pax, b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    block[156] = entry.kind as u8;
    if !text(&mut block[157..257], &entry.link) {
        record(&mut pax, b"linkpath", &entry.link);
    }
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    for (name, value) in &entry.xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    fix_checksum(&mut block);
    (block, pax)
}

/// A pax time: decimal seconds with a fraction, exact before the epoch too.
fn time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds @ 0.., nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
        (seconds, nanoseconds) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
    }
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Writer<W> {
        Writer { out }
    }

    /// Writes an entry's headers; [`Writer::contents`] of exactly its size follow.
    ///
    /// # Errors
    /// The stream's.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let (block, pax) = header(entry);
        if !pax.is_empty() {
            let mut head = [0u8; BLOCK];
            text(&mut head[..100], b"pax");
            octal(&mut head[100..108], 0o644);
            octal(&mut head[108..116], 0);
            octal(&mut head[116..124], 0);
            octal(&mut head[124..136], pax.len() as u64);
            octal(&mut head[136..148], 0);
            head[156] = b'x';
            head[257..265].copy_from_slice(b"ustar\x0000");
            fix_checksum(&mut head);
            self.out.write_all(&head)?;
            self.out.write_all(&pax)?;
            self.pad(pax.len() as u64)?;
        }
        self.out.write_all(&block)
    }

    /// Writes `size` bytes of contents; a file that became shorter meanwhile is filled with zeros.
    ///
    /// # Errors
    /// The streams'.
    pub fn contents(&mut self, from: &mut impl Read, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let mut left = size;
        let mut piece = vec![0u8; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
        while left > 0 {
            let room = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let target = &mut piece[..room];
            let got = match from.read(target) {
                Ok(0) => {
                    target.fill(0);
                    room
                }
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.out.write_all(&piece[..got])?;
            left -= got as u64;
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][over..]) }
    }

    /// Writes the end and gives the stream back.
    ///
    /// # Errors
    /// The stream's.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }
}
