//! The ELF64 loader for `vmlinux` (System V ABI, AMD64 supplement; ELF-64 object file format).

use guestmem::GuestMemory;

use crate::load::Error;

const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;

fn field<const N: usize>(image: &[u8], at: u64) -> Result<[u8; N], Error> {
    let at = usize::try_from(at).map_err(|_| Error::Kernel("an offset is beyond the file"))?;
    at.checked_add(N)
        .and_then(|end| image.get(at..end))
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(Error::Kernel("it is cut short"))
}

fn u16_at(image: &[u8], at: u64) -> Result<u16, Error> {
    field(image, at).map(u16::from_le_bytes)
}

fn u32_at(image: &[u8], at: u64) -> Result<u32, Error> {
    field(image, at).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], at: u64) -> Result<u64, Error> {
    field(image, at).map(u64::from_le_bytes)
}

/// A loadable segment.
struct Segment<'a> {
    paddr: u64,
    /// Where it ends in memory.
    end: u64,
    bytes: &'a [u8],
}

/// Checks that `image` is a kernel that can be loaded, without loading it: the physical addresses from the start of its
/// lowest segment to the end of its highest.
///
/// # Errors
/// [`Error`]: why it is none, or where it wants to lie and cannot.
pub fn inspect(image: &[u8]) -> Result<std::ops::Range<u64>, Error> {
    let segments = segments(image)?;
    let start = segments.iter().map(|segment| segment.paddr).min().unwrap_or_default();
    let end = segments.iter().map(|segment| segment.end).max().unwrap_or_default();
    match start < crate::layout::ACPI_END {
        true => Err(Error::Kernel("it wants to lie in the first MiB, where the machine's tables are")),
        false => Ok(start..end),
    }
}

fn entry(image: &[u8]) -> Result<u64, Error> {
    if field::<4>(image, 0)? != *b"\x7fELF" {
        return Err(Error::Kernel("it is not an ELF file"));
    }
    let (class, data) = (field::<1>(image, 4)?, field::<1>(image, 5)?);
    if class != [2] || data != [1] || u16_at(image, 18)? != EM_X86_64 {
        return Err(Error::Kernel("it is not a 64-bit little-endian x86-64 ELF file"));
    }
    u64_at(image, 24)
}

fn segments(image: &[u8]) -> Result<Vec<Segment<'_>>, Error> {
    entry(image)?;
    let table = u64_at(image, 32)?;
    let (size, count) = (u16_at(image, 54)?, u16_at(image, 56)?);
    let mut found = Vec::new();
    for i in 0..u64::from(count) {
        let ph = table.checked_add(i * u64::from(size)).ok_or(Error::Kernel("its header table overflows"))?;
        if u32_at(image, ph)? == PT_LOAD {
            found.push(segment(image, ph)?);
        }
    }
    if found.is_empty() {
        return Err(Error::Kernel("it has no loadable segment"));
    }
    Ok(found)
}

fn segment(image: &[u8], ph: u64) -> Result<Segment<'_>, Error> {
    let size = |at| usize::try_from(at).map_err(|_| Error::Kernel("a segment is too large"));
    let (offset, filesz) = (size(u64_at(image, ph + 8)?)?, size(u64_at(image, ph + 32)?)?);
    let (paddr, memsz) = (u64_at(image, ph + 24)?, u64_at(image, ph + 40)?);
    let bytes = offset
        .checked_add(filesz)
        .and_then(|end| image.get(offset..end))
        .ok_or(Error::Kernel("a segment lies beyond the file"))?;
    let end = paddr.checked_add(memsz).ok_or(Error::Kernel("a segment overflows"))?;
    if memsz < filesz as u64 {
        return Err(Error::Kernel("a segment is larger in the file than in memory"));
    }
    Ok(Segment { paddr, end, bytes })
}

/// Copies the loadable segments to their physical addresses. Returns the entry point and the end
/// of the highest segment.
pub(crate) fn load_elf(memory: &GuestMemory, image: &[u8]) -> Result<(u64, u64), Error> {
    let mut highest = 0;
    for Segment { paddr, end, bytes } in segments(image)? {
        let no_room = Error::NoRoom { what: "the kernel", need: end };
        // Fresh guest memory is zero: the rest of the segment (bss) needs no write, only to be RAM.
        if paddr < crate::layout::ACPI_END || !memory.is_ram(paddr, end - paddr) {
            return Err(no_room);
        }
        memory.write(paddr, bytes).map_err(|_| no_room)?;
        highest = highest.max(end);
    }
    Ok((entry(image)?, highest))
}
