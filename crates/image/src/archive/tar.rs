//! Goes over a tar archive: ustar, GNU long names, pax extended headers with attributes.
//!
//! The archive may come from a guest or from anywhere, so what is held in memory is bounded
//! ([`MAX_EXTENDED`]), checksums are checked, and an archive without its end mark is an error:
//! half a root must not pass for a whole one.

use std::io::{self, Read};

use super::ArchiveError;
use super::header::{BLOCK, Header};
use crate::tree::{Device, Meta, Time, Xattrs, shown};

/// Largest extended header or long name, in bytes; also the attributes of one member together.
const MAX_EXTENDED: u64 = 1 << 20;

/// What an archive member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    Dir,
    /// Its data follow; read them from the [`TarReader`].
    File,
    /// Another name of the member at this path.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// One archive member, its path as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: EntryKind,
    pub meta: Meta,
    /// Bytes of data behind it.
    pub size: u64,
}

/// Reads members one after the other. As a [`Read`] it gives the current member's data.
pub struct TarReader<R> {
    inner: R,
    /// Bytes of data of the current member not read yet, and the padding behind them.
    left: u64,
    pad: u64,
    at: u64,
    global: Extended,
}

/// What extended headers say about the member that follows.
#[derive(Clone, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Time>,
    xattrs: Xattrs,
    sparse: bool,
}

impl<R: Read> TarReader<R> {
    /// Reads an archive that is not compressed (any more).
    pub fn new(inner: R) -> Self {
        Self { inner, left: 0, pad: 0, at: 0, global: Extended::default() }
    }

    /// Where in the archive reading is: after [`TarReader::next_entry`], at the member's data.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next member; None behind the end mark. Data of the last one are skipped.
    ///
    /// # Errors
    /// [`ArchiveError`]; the archive is not to be read on then.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = self.global.clone();
        loop {
            self.skip_data()?;
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block.iter().all(|b| *b == 0) {
                return Ok(None);
            }
            let header = Header::parse(&block).ok_or_else(|| match self.at {
                512 => ArchiveError::NotTar("something unknown"),
                _ => self.damaged("a header's checksum is wrong"),
            })?;
            let size = header.size().ok_or_else(|| self.damaged("a member's size is not a number"))?;
            match header.kind() {
                b'x' => {
                    let records = self.extended_data(size)?;
                    self.pax(&records, &mut extended)?;
                }
                b'g' => {
                    let records = self.extended_data(size)?;
                    let mut global = self.global.clone();
                    self.pax(&records, &mut global)?;
                    extended = global.clone();
                    self.global = global;
                }
                b'L' => extended.path = Some(until_nul(self.extended_data(size)?)),
                b'K' => extended.link = Some(until_nul(self.extended_data(size)?)),
                kind => return self.entry(&header, kind, size, extended).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        kind: u8,
        size: u64,
        extended: Extended,
    ) -> Result<Entry, ArchiveError> {
        let field = |value: Option<u32>| value.ok_or_else(|| self.damaged("a number is none"));
        let path = extended.path.unwrap_or_else(|| header.name());
        if extended.sparse || kind == b'S' {
            return Err(unsupported(&path, "a sparse file", "make the archive without --sparse"));
        }
        let link = extended.link.unwrap_or_else(|| header.link());
        let size = extended.size.unwrap_or(size);
        let device =
            Device { major: field(header.major()).unwrap_or(0), minor: field(header.minor()).unwrap_or(0) };
        let entry_kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => EntryKind::Dir,
            b'0' | 0 | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::CharDevice(device),
            b'4' => EntryKind::BlockDevice(device),
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            _ => {
                let way_out = "make the archive with GNU tar, --format=posix";
                return Err(unsupported(&path, "of a kind that tar does not define", way_out));
            }
        };
        let mtime = match extended.mtime {
            Some(time) => time,
            None => Time::from_secs(
                header.mtime().ok_or_else(|| self.damaged("a member's time is not a number"))?,
            ),
        };
        let meta = Meta {
            mode: header.mode().ok_or_else(|| self.damaged("a member's mode is not a number"))?,
            uid: field(extended.uid.or(header.uid()))?,
            gid: field(extended.gid.or(header.gid()))?,
            mtime,
            xattrs: extended.xattrs,
        };
        self.announce(size);
        let size = match entry_kind {
            EntryKind::File => size,
            _ => 0, // data of others are skipped
        };
        Ok(Entry { path, kind: entry_kind, meta, size })
    }

    fn announce(&mut self, size: u64) {
        self.left = size;
        self.pad = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        for part in [self.left, self.pad] {
            let skipped = io::copy(&mut self.inner.by_ref().take(part), &mut io::sink())?;
            self.at = self.at.saturating_add(skipped);
            if skipped < part {
                return Err(ArchiveError::Short("a member's data end early"));
            }
        }
        (self.left, self.pad) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), ArchiveError> {
        self.inner.read_exact(buf).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Short("its end mark is missing"),
            _ => ArchiveError::Io(e),
        })?;
        self.at = self.at.saturating_add(buf.len() as u64);
        Ok(())
    }

    fn extended_data(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENDED {
            return Err(self.damaged("an extended header is larger than 1 MiB"));
        }
        let mut data = vec![0; size as usize];
        self.fill(&mut data)?;
        self.announce(size);
        self.left = 0;
        Ok(data)
    }

    /// Records `LENGTH KEY=VALUE\n` of an extended header (POSIX pax).
    fn pax(&self, mut records: &[u8], into: &mut Extended) -> Result<(), ArchiveError> {
        let damaged = || self.damaged("an extended header's record does not hold together");
        while !records.is_empty() {
            let space = records.iter().position(|b| *b == b' ').ok_or_else(damaged)?;
            let len: usize = parse(&records[..space]).ok_or_else(damaged)?;
            let record = records
                .get(space + 1..len)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or_else(damaged)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(damaged)?;
            into.set(&record[..equals], &record[equals + 1..]).ok_or_else(damaged)?;
            records = &records[len..];
        }
        // Header upon header could add up to any size.
        let attributes: usize = into.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        if attributes as u64 > MAX_EXTENDED {
            return Err(self.damaged("a member's extended attributes are larger than 1 MiB"));
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> ArchiveError {
        ArchiveError::Damaged { at: self.at, what }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buf.len() as u64) as usize;
        let got = self.inner.read(&mut buf[..want])?;
        self.left -= got as u64;
        self.at = self.at.saturating_add(got as u64);
        Ok(got)
    }
}

impl Extended {
    /// Takes one record; None when its value makes no sense. An empty value takes it back.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(|| parse(value)).map_or(Some(None), |v| v.map(Some))?,
            b"uid" => self.uid = given.then(|| parse(value)).map_or(Some(None), |v| v.map(Some))?,
            b"gid" => self.gid = given.then(|| parse(value)).map_or(Some(None), |v| v.map(Some))?,
            b"mtime" => self.mtime = given.then(|| time(value)).map_or(Some(None), |v| v.map(Some))?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.into(), value.into());
                }
                self.sparse |= key.starts_with(b"GNU.sparse.");
            }
        }
        Some(())
    }
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a decimal fraction, rounded down to nanoseconds.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = &fraction[..fraction.len().min(9)];
    let nanos: u32 = format!("{digits:0<9}").parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn unsupported(path: &[u8], what: &'static str, way_out: &'static str) -> ArchiveError {
    ArchiveError::Unsupported { path: shown(path), what, way_out }
}
