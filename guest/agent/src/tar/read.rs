//! Reading: every length is checked against a bound, every number against its field; what is not understood is refused.

use super::{BLOCK, Entry, Kind};
use std::io::{self, Read};

/// The longest pax header or GNU long name, in bytes.
const EXTENSION_LIMIT: u64 = 1 << 20;

/// Reads an archive from `R`.
pub struct Reader<R> {
    input: R,
    /// Contents of the current entry not yet read, and the padding after them.
    left: u64,
    padding: u64,
}

/// What pax and GNU headers said about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("tar: {why}"))
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number, or a base-256 one (first bit set).
fn number(field: &[u8]) -> io::Result<i64> {
    let refuse = || bad("a number that is none");
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) {
        let start =
            if first & 0x40 != 0 { -1i64 << 6 | i64::from(first & 0x3f) } else { i64::from(first & 0x3f) };
        let add = |value: i64, byte: &u8| value.checked_mul(256)?.checked_add(i64::from(*byte));
        return rest.iter().try_fold(start, add).ok_or_else(refuse);
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| refuse())?.trim_matches(' ');
    if digits.is_empty() {
        return Ok(0);
    }
    i64::from_str_radix(digits, 8).ok().filter(|value| *value >= 0).ok_or_else(refuse)
}

fn unsigned(value: i64) -> io::Result<u64> {
    u64::try_from(value).map_err(|_| bad("a negative length or owner"))
}

fn small(value: u64, what: &str) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| bad(&format!("{what} {value} is out of range")))
}

fn kind(flag: u8) -> io::Result<Kind> {
    Ok(match flag {
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(bad(&format!("an entry of type {:?}", char::from(other)))),
    })
}

/// A pax time.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let value = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if value.starts_with('-') && nanoseconds != 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

impl Extensions {
    /// Takes the records of a pax header.
    fn records(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let refuse = || bad("a malformed pax record");
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(refuse)?;
            let length =
                bytes.get(..space).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
            let length = length.ok_or_else(refuse)?;
            let body =
                bytes.get(space + 1..length).and_then(|body| body.strip_suffix(b"\n")).ok_or_else(refuse)?;
            let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(refuse)?;
            let (key, value) =
                (body.get(..equals).unwrap_or_default(), body.get(equals + 1..).unwrap_or_default());
            self.record(key, value)?;
            bytes = bytes.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let number = || {
            let digits = std::str::from_utf8(value).ok().and_then(|digits| digits.parse::<u64>().ok());
            digits.ok_or_else(|| bad("a pax number that is none"))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(|| bad("a pax time that is none"))?),
            // A sparse file's contents are not what its size says; unpacking it plainly would be wrong.
            _ if key.starts_with(b"GNU.sparse.") => return Err(bad("sparse files are not supported")),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

impl<R: Read> Reader<R> {
    /// Starts reading.
    pub fn new(input: R) -> Reader<R> {
        Reader { input, left: 0, padding: 0 }
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// A header block with a right checksum; `None` at the end (a block of zeros).
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0u8; BLOCK];
        self.input.read_exact(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: i64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { i64::from(*byte) })
            .sum();
        if number(&block[148..156])? != sum {
            return Err(bad("a header with a wrong checksum (not a tar stream, or damaged)"));
        }
        Ok(Some(block))
    }

    /// The contents of an extension header.
    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_LIMIT {
            return Err(bad(&format!("an extended header of {size} bytes")));
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.skip(padding(size))?;
        Ok(bytes)
    }

    /// The next entry; what is left of the one before is skipped. `None` at the archive's end.
    ///
    /// # Errors
    /// The stream's, `InvalidData` for what is no tar.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        self.skip(self.left)?;
        self.skip(self.padding)?;
        (self.left, self.padding) = (0, 0);
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let size = unsigned(number(&block[124..136])?)?;
            match block[156] {
                b'x' => {
                    let records = self.extension(size)?;
                    extensions.records(&records)?;
                }
                b'g' => drop(self.extension(size)?),
                b'L' => extensions.path = Some(text(&self.extension(size)?).to_vec()),
                b'K' => extensions.link = Some(text(&self.extension(size)?).to_vec()),
                _ => return self.entry(&block, size, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, extensions: Extensions) -> io::Result<Entry> {
        let kind = kind(block[156])?;
        let mut path = extensions.path.unwrap_or_else(|| {
            let (name, prefix) = (text(&block[..100]), text(&block[345..500]));
            // GNU's own format keeps times where ustar keeps the prefix.
            let posix = block.get(257..263) == Some(b"ustar\0".as_slice());
            if posix && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
        });
        let slash = path.last() == Some(&b'/');
        while path.len() > 1 && path.last() == Some(&b'/') {
            path.pop();
        }
        // Before ustar a directory was a file whose name ends in a slash.
        let kind = if kind == Kind::File && slash { Kind::Directory } else { kind };
        let size = if kind == Kind::File { extensions.size.unwrap_or(size) } else { 0 };
        (self.left, self.padding) = (size, padding(size));
        let owner = |field: &[u8], given: Option<u64>, what| match given {
            Some(value) => small(value, what),
            None => small(unsigned(number(field)?)?, what),
        };
        Ok(Entry {
            path,
            kind,
            mode: small(unsigned(number(&block[100..108])?)?, "mode")? & 0o7777,
            uid: owner(&block[108..116], extensions.uid, "owner")?,
            gid: owner(&block[116..124], extensions.gid, "group")?,
            size,
            mtime: match extensions.mtime {
                Some(time) => time,
                None => (number(&block[136..148])?, 0),
            },
            link: extensions.link.unwrap_or_else(|| text(&block[157..257]).to_vec()),
            device: match kind {
                Kind::Character | Kind::Block => (
                    small(unsigned(number(&block[329..337])?)?, "device")?,
                    small(unsigned(number(&block[337..345])?)?, "device")?,
                ),
                _ => (0, 0),
            },
            xattrs: extensions.xattrs,
        })
    }

    /// The contents of the current entry.
    pub fn contents(&mut self) -> Contents<'_, R> {
        Contents { reader: self }
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Reads the contents of one entry; an archive that ends early is an error, not an end.
pub struct Contents<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.reader.left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(0);
        }
        let got = self.reader.input.read(buffer.get_mut(..room).unwrap_or_default())?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reader.left -= got as u64;
        Ok(got)
    }
}
