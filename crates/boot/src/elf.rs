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

/// Copies the loadable segments to their physical addresses. Returns the entry point and the end
/// of the highest segment.
pub(crate) fn load_elf(memory: &GuestMemory, image: &[u8]) -> Result<(u64, u64), Error> {
    if field::<4>(image, 0)? != *b"\x7fELF" {
        return Err(Error::Kernel("it is not an ELF file (a bzImage must be unpacked to vmlinux)"));
    }
    let (class, data) = (field::<1>(image, 4)?, field::<1>(image, 5)?);
    if class != [2] || data != [1] || u16_at(image, 18)? != EM_X86_64 {
        return Err(Error::Kernel("it is not a 64-bit little-endian x86-64 ELF file"));
    }
    let entry = u64_at(image, 24)?;
    let table = u64_at(image, 32)?;
    let (size, count) = (u16_at(image, 54)?, u16_at(image, 56)?);
    let mut end = 0;
    for i in 0..u64::from(count) {
        let ph = table.checked_add(i * u64::from(size)).ok_or(Error::Kernel("its header table overflows"))?;
        if u32_at(image, ph)? == PT_LOAD {
            end = end.max(load_segment(memory, image, ph)?);
        }
    }
    if end == 0 {
        return Err(Error::Kernel("it has no loadable segment"));
    }
    Ok((entry, end))
}

fn load_segment(memory: &GuestMemory, image: &[u8], ph: u64) -> Result<u64, Error> {
    let offset =
        usize::try_from(u64_at(image, ph + 8)?).map_err(|_| Error::Kernel("a segment is too large"))?;
    let paddr = u64_at(image, ph + 24)?;
    let filesz =
        usize::try_from(u64_at(image, ph + 32)?).map_err(|_| Error::Kernel("a segment is too large"))?;
    let memsz = u64_at(image, ph + 40)?;
    let bytes = offset
        .checked_add(filesz)
        .and_then(|end| image.get(offset..end))
        .ok_or(Error::Kernel("a segment lies beyond the file"))?;
    let end = paddr.checked_add(memsz).ok_or(Error::Kernel("a segment overflows"))?;
    if memsz < filesz as u64 {
        return Err(Error::Kernel("a segment is larger in the file than in memory"));
    }
    // Fresh guest memory is zero: the rest of the segment (bss) needs no write, only to be RAM.
    if paddr < crate::layout::ACPI_END || !memory.is_ram(paddr, memsz) {
        return Err(Error::NoRoom { what: "the kernel", need: end });
    }
    memory.write(paddr, bytes).map_err(|_| Error::NoRoom { what: "the kernel", need: end })?;
    Ok(end)
}
