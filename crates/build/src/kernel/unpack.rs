//! The ELF file that is in a kernel's image: a `vmlinux` is one, a bzImage has it packed.
//!
//! Whoever made the image may have meant harm: nothing is taken but bytes that are there, what is unpacked is never
//! longer than [`MOST`], and no unpacker takes more than [`MEMORY`] beside it.

use std::io::{self, Read};
use std::ops::Range;

use boot::BzImage;
use liblzma::stream::Stream;

/// Most bytes of a kernel, packed or not: what a machine file's reader takes.
pub(super) const MOST: u64 = 256 << 20;
/// Most bytes that xz and LZMA may take; Linux packs with a dictionary of at most 128 MiB (scripts/xz_wrap.sh).
const MEMORY: u64 = 256 << 20;
/// Largest window of zstd as a power of two: 128 MiB, which Linux packs with (`zstd -22 --ultra`).
const WINDOW: u32 = 27;
/// Most bytes that one block of the LZ4 legacy frame unpacks to (LZ4 frame format, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;
/// Begins such a frame, and may stand again between its blocks.
const LZ4_MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
/// What stands before the release in every Linux kernel (init/version.c).
const BANNER: &[u8] = b"Linux version ";

/// A kernel's image, unpacked.
#[derive(Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// What was in it, an ELF file if it was a kernel.
    pub vmlinux: Vec<u8>,
    /// How it came: `vmlinux`, `bzImage`.
    pub form: &'static str,
    /// The release that a bzImage's header claims.
    claimed: Option<String>,
}

impl std::fmt::Debug for KernelImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelImage").field("form", &self.form).field("bytes", &self.vmlinux.len()).finish()
    }
}

impl KernelImage {
    /// Unpacks `image`: a `vmlinux`, or a bzImage packed with gzip, xz, zstd, LZ4 or LZMA.
    ///
    /// # Errors
    /// Why it cannot be, as the end of a sentence about the image.
    pub fn unpack(image: Vec<u8>) -> Result<Self, String> {
        if image.starts_with(b"\x7fELF") {
            return Ok(Self { vmlinux: image, form: "vmlinux", claimed: None });
        }
        let Some(header) = BzImage::parse(&image) else {
            return Err("it is neither a vmlinux (ELF) nor a bzImage, or it is cut short".into());
        };
        if !header.is_64_bit {
            return Err("it is a bzImage for 32-bit processors (or older than boot protocol 2.12)".into());
        }
        let claimed = header.version.split(' ').next().filter(|word| !word.is_empty()).map(str::to_owned);
        let vmlinux =
            decompress(&image[header.payload]).map_err(|what| format!("its packed kernel {what}"))?;
        Ok(Self { vmlinux, form: "bzImage", claimed })
    }

    /// The physical addresses that it wants to lie at.
    ///
    /// # Errors
    /// [`boot::Error`]: why it cannot be loaded.
    pub fn place(&self) -> Result<Range<u64>, boot::Error> {
        boot::inspect(&self.vmlinux)
    }

    /// As `uname -r` prints it: what its banner says, else what its header claims.
    pub fn release(&self) -> Option<String> {
        banner(&self.vmlinux).or_else(|| self.claimed.clone())
    }
}

fn banner(vmlinux: &[u8]) -> Option<String> {
    let after = super::find(vmlinux, BANNER, |rest| rest.first().is_some_and(u8::is_ascii_digit))?;
    let word: Vec<u8> = after.iter().copied().take(64).take_while(u8::is_ascii_graphic).collect();
    String::from_utf8(word).ok()
}

/// One packed stream. Behind it stands its unpacked size in four bytes, which only LZ4 has use for: the others know
/// themselves whether they are whole.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| format!("cannot be unpacked: {error}");
    let xz = |stream: Result<Stream, liblzma::stream::Error>| {
        let stream = stream.map_err(|error| failed(error.into()))?;
        Ok::<_, String>(liblzma::bufread::XzDecoder::new_stream(payload, stream))
    };
    let unpacked: Box<dyn Read + '_> = match payload {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::GzDecoder::new(payload)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(xz(Stream::new_stream_decoder(MEMORY, 0))?),
        [0x5d, 0, 0, ..] => Box::new(xz(Stream::new_lzma_decoder(MEMORY))?),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(payload).map_err(failed)?;
            decoder.window_log_max(WINDOW).map_err(failed)?;
            Box::new(decoder.single_frame())
        }
        [0x7f, b'E', b'L', b'F', ..] => Box::new(payload),
        _ if payload.starts_with(&LZ4_MAGIC) => return lz4(payload),
        _ => {
            let name = match payload {
                [b'B', b'Z', b'h', ..] => "bzip2",
                [0x89, 0x4c, 0x5a, ..] => "LZO",
                _ => "a way that is not known here",
            };
            return Err(format!(
                "is packed with {name}; build it with CONFIG_KERNEL_GZIP, _XZ, _ZSTD, _LZ4 or _LZMA, or name its vmlinux"
            ));
        }
    };
    let mut vmlinux = Vec::new();
    unpacked.take(MOST + 1).read_to_end(&mut vmlinux).map_err(failed)?;
    match vmlinux.len() as u64 > MOST {
        true => Err(too_long()),
        false => Ok(vmlinux),
    }
}

fn too_long() -> String {
    format!("unpacks to more than {} MiB", MOST >> 20)
}

/// The legacy frame, which `lz4 -l` and so Linux's own build make: blocks behind their lengths, to the end of the
/// file. It has no end mark and no checksum, so the size that Linux's build puts behind it says whether it is whole.
fn lz4(payload: &[u8]) -> Result<Vec<u8>, String> {
    let mut block = vec![0; LZ4_BLOCK];
    let (mut vmlinux, mut rest) = (Vec::new(), payload);
    loop {
        let Some((word, after)) = rest.split_first_chunk::<4>() else {
            return Err("cannot be unpacked: its LZ4 frame is cut short".into());
        };
        let number = u32::from_le_bytes(*word) as usize;
        if after.is_empty() {
            return match number == vmlinux.len() {
                true => Ok(vmlinux),
                false => Err(format!(
                    "cannot be unpacked: it says that it has {number} bytes, and has {}",
                    vmlinux.len()
                )),
            };
        }
        rest = after;
        if *word == LZ4_MAGIC {
            continue;
        }
        let Some((packed, after)) = rest.split_at_checked(number) else {
            return Err("cannot be unpacked: its LZ4 frame is cut short".into());
        };
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block);
        let len = unpacked.map_err(|error| format!("cannot be unpacked: {error}"))?;
        if (vmlinux.len() + len) as u64 > MOST {
            return Err(too_long());
        }
        vmlinux.extend_from_slice(&block[..len]);
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Not all alike, longer than two blocks of LZ4, and no ELF file.
    fn kernel() -> Vec<u8> {
        let words = (0..5_000_000_u32).map(|n| n.wrapping_mul(0x9e37_79b9) >> 28);
        let mut kernel = b"kernel, Linux version 6.1.9-here (x) ".to_vec();
        words.for_each(|word| kernel.extend_from_slice(&word.to_le_bytes()));
        kernel
    }

    fn with_size(mut packed: Vec<u8>, len: usize) -> Vec<u8> {
        packed.extend_from_slice(&(len as u32).to_le_bytes());
        packed
    }

    /// What `lz4 -l` makes, of literals alone: a token, the length in bytes of 255, the literals.
    fn legacy(bytes: &[u8]) -> Vec<u8> {
        let mut frame = LZ4_MAGIC.to_vec();
        for block in bytes.chunks(LZ4_BLOCK) {
            let mut packed = vec![0xf0];
            packed.resize(1 + (block.len() - 15) / 255, 255);
            packed.push(((block.len() - 15) % 255) as u8);
            packed.extend_from_slice(block);
            frame.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            frame.extend_from_slice(&packed);
        }
        frame
    }

    fn lzma(bytes: &[u8]) -> Vec<u8> {
        let options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
        let stream = Stream::new_lzma_encoder(&options).unwrap();
        let mut packed = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut packed = liblzma::write::XzEncoder::new(Vec::new(), 0);
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn every_packing_is_undone_and_a_cut_one_refused() {
        let kernel = kernel();
        for (name, packed) in [
            ("gzip", gzip(&kernel)),
            ("xz", xz(&kernel)),
            ("zstd", zstd::bulk::compress(&kernel, 1).unwrap()),
            ("lzma", lzma(&kernel)),
            ("lz4", legacy(&kernel)),
        ] {
            let whole = with_size(packed.clone(), kernel.len());
            assert!(decompress(&whole) == Ok(kernel.clone()), "{name}");
            for cut in [packed.len() / 2, packed.len() - 1] {
                let error = decompress(&packed[..cut]).unwrap_err();
                assert!(error.starts_with("cannot be unpacked"), "{name}: {error}");
            }
        }
    }

    #[test]
    fn nothing_unpacks_to_more_than_a_kernel_may_have() {
        let bomb = vec![0; MOST as usize + 1];
        for (name, packed) in
            [("zstd", zstd::bulk::compress(&bomb, 1).unwrap()), ("gzip", gzip(&bomb)), ("lz4", zeros(33))]
        {
            assert_eq!(decompress(&packed).unwrap_err(), "unpacks to more than 256 MiB", "{name}");
        }
        // A block of more than 8 MiB, which no writer makes.
        let mut large = zeros(1);
        let longer = large.len() - 7;
        large.splice(longer..longer, [255; 10]);
        let len = large.len() as u32 - 8;
        large[4..8].copy_from_slice(&len.to_le_bytes());
        assert!(decompress(&with_size(large, 0)).unwrap_err().starts_with("cannot be unpacked"));
    }

    /// Blocks of 8 MiB of zeros each: one literal, a match of distance 1, five literals.
    fn zeros(blocks: usize) -> Vec<u8> {
        let mut packed = vec![0x1f, 0, 1, 0];
        let rest = LZ4_BLOCK - 6 - 4 - 15;
        packed.resize(4 + rest / 255, 255);
        packed.extend_from_slice(&[(rest % 255) as u8, 0x50, 0, 0, 0, 0, 0]);
        let mut frame = LZ4_MAGIC.to_vec();
        for _ in 0..blocks {
            frame.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            frame.extend_from_slice(&packed);
        }
        frame
    }

    #[test]
    fn an_lz4_frame_may_say_its_magic_number_again_and_lies_are_seen() {
        let (kernel, other) = (vec![b'k'; 1000], vec![b'o'; 700]);
        let twice = [legacy(&kernel), legacy(&other)].concat();
        assert_eq!(decompress(&with_size(twice.clone(), 1700)).unwrap().len(), 1700);
        assert!(decompress(&with_size(twice.clone(), 1701)).unwrap_err().contains("1701"));
        // Whatever is changed: an error or bytes, and nothing else.
        let whole = with_size(twice, 1700);
        for at in 0..whole.len() {
            for value in [0, 0x80, 0xff] {
                let mut bad = whole.clone();
                bad[at] = value;
                let _ = decompress(&bad);
            }
        }
    }

    #[test]
    fn a_dictionary_of_gigabytes_is_refused_before_it_is_made() {
        let mut packed = lzma(b"small");
        packed[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        // The first bytes of such a file are those of no LZMA file that Linux's build makes.
        assert!(decompress(&packed).unwrap_err().contains("not known"));
        packed[1..5].copy_from_slice(&0x8000_0000_u32.to_le_bytes());
        assert!(decompress(&packed).unwrap_err().starts_with("cannot be unpacked"), "2 GiB");
    }
}
