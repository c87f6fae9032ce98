//! What compressed a stream, found by its first bytes.

use std::io::{self, BufReader, Cursor, Read};

use super::ArchiveError;

/// Most memory the xz decoder may take; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
/// Largest zstd window as a power of two; 128 MiB, what `zstd --long` needs.
const ZSTD_WINDOW: u32 = 27;
/// Bytes looked at: a tar's magic number stands at 257.
const LOOK: usize = 512;

/// Wraps `inner` in the decompressor that its first bytes ask for: gzip, xz, zstd or none.
///
/// # Errors
/// A format that is known but not supported is named.
pub fn decompress<'a>(mut inner: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>, ArchiveError> {
    let mut start = Vec::with_capacity(LOOK);
    inner.by_ref().take(LOOK as u64).read_to_end(&mut start)?;
    let kind = Kind::of(&start);
    let whole = BufReader::with_capacity(128 * 1024, Cursor::new(start).chain(inner));
    Ok(match kind {
        Kind::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Kind::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)
                    .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
        Kind::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        Kind::Plain => Box::new(whole),
        Kind::Foreign(what) => return Err(ArchiveError::NotTar(what)),
    })
}

enum Kind {
    Gzip,
    Xz,
    Zstd,
    Plain,
    Foreign(&'static str),
}

impl Kind {
    fn of(start: &[u8]) -> Self {
        let has = |magic: &[u8]| start.starts_with(magic);
        match () {
            () if start.get(257..262) == Some(b"ustar") => Self::Plain,
            () if has(b"\x1f\x8b") => Self::Gzip,
            () if has(b"\xfd7zXZ\0") => Self::Xz,
            () if has(b"\x28\xb5\x2f\xfd") => Self::Zstd,
            () if has(b"BZh") => Self::Foreign("bzip2 data; recompress it with xz or zstd"),
            () if has(b"PK\x03\x04") => Self::Foreign("a zip archive"),
            () if has(b"7z\xbc\xaf") => Self::Foreign("a 7-zip archive"),
            () if has(b"\x7fELF") => Self::Foreign("a program"),
            () if has(b"QFI\xfb") => Self::Foreign("a qcow2 disk image"),
            () if has(b"hsqs") => Self::Foreign("a squashfs image"),
            () if has(b"!<arch>\n") => {
                Self::Foreign("an ar archive, perhaps a Debian package; name packages instead")
            }
            () if start.is_empty() => Self::Foreign("an empty file"),
            () => Self::Plain, // an old tar without a magic number, or refused by its checksum
        }
    }
}
