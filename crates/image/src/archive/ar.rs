//! The `ar` container of a Debian package (deb(5)): a magic line, then members with a 60-byte
//! text header, each padded to an even length.

use std::io::{self, Read};

use super::ArchiveError;

const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER: usize = 60;

/// Goes over an archive's members in order. As a [`Read`] it gives the current member's bytes.
pub struct Ar<R> {
    inner: R,
    left: u64,
    pad: u64,
}

impl<R: Read> Ar<R> {
    pub fn new(mut inner: R) -> Result<Self, ArchiveError> {
        let mut magic = [0; MAGIC.len()];
        inner.read_exact(&mut magic).map_err(short)?;
        if magic != *MAGIC {
            return Err(damaged("it does not begin as a Debian package does"));
        }
        Ok(Self { inner, left: 0, pad: 0 })
    }

    /// The next member's name; None at the end.
    pub fn next_member(&mut self) -> Result<Option<String>, ArchiveError> {
        let rest = self.left + self.pad;
        if io::copy(&mut self.inner.by_ref().take(rest), &mut io::sink())? < self.left {
            return Err(ArchiveError::Short("a package member ends early"));
        }
        let mut header = [0; HEADER];
        match self.inner.read(&mut header[..1])? {
            0 => return Ok(None),
            _ => self.inner.read_exact(&mut header[1..]).map_err(short)?,
        }
        if header[58..] != *b"`\n" {
            return Err(damaged("a package member's header has no end mark"));
        }
        let text = |field: &[u8]| {
            std::str::from_utf8(field)
                .map(|text| text.trim_end().trim_end_matches('/').to_owned())
                .map_err(|_| damaged("a package member's header is not text"))
        };
        // Ten digits at most, so the sum below stays far from 2^64.
        self.left =
            text(&header[48..58])?.parse().map_err(|_| damaged("a package member's size is not a number"))?;
        self.pad = self.left % 2;
        text(&header[..16]).map(Some)
    }
}

impl<R: Read> Read for Ar<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buf.len() as u64) as usize;
        let got = self.inner.read(&mut buf[..want])?;
        self.left -= got as u64;
        Ok(got)
    }
}

fn damaged(what: &'static str) -> ArchiveError {
    ArchiveError::Damaged { at: 0, what }
}

fn short(e: io::Error) -> ArchiveError {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Short("a package header is missing"),
        _ => ArchiveError::Io(e),
    }
}
