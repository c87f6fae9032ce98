//! What a bzImage says of itself (Linux: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"). A machine is
//! entered at the `vmlinux` that is packed in it, never at its own decompressor.

use std::ops::Range;

/// `HdrS` at 0x202.
const MAGIC: &[u8] = b"HdrS";
/// The first protocol that says where the payload is, 2.08.
const WITH_PAYLOAD: u16 = 0x0208;
/// The first that has `xloadflags`, 2.12; XLF_KERNEL_64: it is a 64-bit kernel.
const WITH_FLAGS: u16 = 0x020c;
const KERNEL_64: u16 = 1;
/// Bytes of a sector, in which the set-up code is counted.
const SECTOR: usize = 512;
/// Longest version text that is read.
const MAX_VERSION: usize = 256;

/// A bzImage's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// The boot protocol that it speaks, as 0x020f for 2.15.
    pub protocol: u16,
    /// Release and build, as `uname -r` and `-v` have them: `6.1.0-1-amd64 (…) #1 SMP …`. Empty when it says none.
    pub version: String,
    /// Whether it says that it is a 64-bit kernel.
    pub is_64_bit: bool,
    /// Where the packed `vmlinux` lies in the file; empty where the protocol is older than such a statement.
    pub payload: Range<usize>,
}

impl BzImage {
    /// Reads the header; `None` for what is no bzImage, or one that is cut short.
    pub fn parse(image: &[u8]) -> Option<Self> {
        if image.get(0x202..0x206)? != MAGIC {
            return None;
        }
        let protocol = u16_at(image, 0x206)?;
        let is_64_bit = protocol >= WITH_FLAGS && u16_at(image, 0x236)? & KERNEL_64 != 0;
        let payload = match protocol >= WITH_PAYLOAD {
            true => payload(image)?,
            false => 0..0,
        };
        Some(Self { protocol, version: version(image), is_64_bit, payload })
    }
}

fn payload(image: &[u8]) -> Option<Range<usize>> {
    // 0 means 4, for the oldest of loaders.
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * SECTOR + usize::try_from(u32_at(image, 0x248)?).ok()?;
    let end = start.checked_add(usize::try_from(u32_at(image, 0x24c)?).ok()?)?;
    image.get(start..end).map(|_| start..end)
}

/// NUL-terminated, at an offset from 0x200.
fn version(image: &[u8]) -> String {
    let at = u16_at(image, 0x20e).filter(|at| *at > 0).map(|at| usize::from(at) + 0x200);
    let text = at.and_then(|at| image.get(at..)).unwrap_or_default();
    let text: Vec<u8> = text.iter().copied().take(MAX_VERSION).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&text).into_owned()
}

fn u16_at(image: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(image: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?))
}
