//! The kernel's ELF file: checked, and packed to what a loader reads.
//!
//! The linker puts segments at file offsets that are multiples of 2 MiB and keeps symbols and section
//! headers: 17 MB, of which a loader reads 11. The packed file has the same ELF header, the same
//! program headers with new offsets, and the segments' bytes, each at a multiple of 4 KiB.
//! Fields: System V ABI, chapters 4 and 5 (ELF64 header 64 bytes, program header 56 bytes).

use anyhow::{Context, Result, bail, ensure};

/// Physical address at which the kernel is linked (`CONFIG_PHYSICAL_START`).
const LINKED_AT: u64 = 16 << 20;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EHDR: usize = 64;
const PHDR: usize = 56;

/// One program header: what the packing needs of it, and its bytes.
struct Segment<'a> {
    kind: u32,
    header: &'a [u8],
    offset: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
}

/// Checks the file and returns it packed.
///
/// Fails unless it is an x86-64 `ET_EXEC` whose first loaded byte is at 16 MiB and whose entry point
/// (the 64-bit one, `startup_64`) is a physical address inside a loaded, executable segment.
pub fn loadable(file: &[u8]) -> Result<Vec<u8>> {
    ensure!(file.starts_with(b"\x7fELF\x02\x01\x01"), "not a little-endian 64-bit ELF file");
    let (kind, machine) = (u16_at(file, 16)?, u16_at(file, 18)?);
    ensure!(kind == 2 && machine == 62, "ELF type {kind} for machine {machine}, not an x86-64 executable");
    let entry = u64_at(file, 24)?;
    let segments = segments(file)?;
    let loads = || segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let first = loads().map(|segment| segment.physical).min().context("nothing to load")?;
    ensure!(first == LINKED_AT, "linked at {first:#x}, not at {LINKED_AT:#x}");
    let holds_entry = |segment: &Segment| {
        let executable = segment.header[4] & 1 != 0;
        executable && (segment.physical..segment.physical + segment.file_size).contains(&entry)
    };
    ensure!(loads().any(holds_entry), "the entry point {entry:#x} is in no executable segment");
    ensure!(
        loads().all(|segment| segment.file_size <= segment.memory_size),
        "a segment is larger than its memory"
    );
    pack(file, &segments)
}

fn segments(file: &[u8]) -> Result<Vec<Segment<'_>>> {
    let table = usize::try_from(u64_at(file, 32)?)?;
    let (size, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
    ensure!(usize::from(size) == PHDR, "program headers of {size} bytes");
    let headers = slice(file, table, PHDR * usize::from(count))?;
    headers
        .chunks_exact(PHDR)
        .map(|header| {
            Ok(Segment {
                kind: u32::from_le_bytes(header[..4].try_into()?),
                header,
                offset: u64_at(header, 8)?,
                physical: u64_at(header, 24)?,
                file_size: u64_at(header, 32)?,
                memory_size: u64_at(header, 40)?,
            })
        })
        .collect()
}

fn pack(file: &[u8], segments: &[Segment]) -> Result<Vec<u8>> {
    let kept: Vec<_> = segments.iter().filter(|segment| matches!(segment.kind, PT_LOAD | PT_NOTE)).collect();
    let mut packed = slice(file, 0, EHDR)?.to_vec();
    packed[32..40].copy_from_slice(&(EHDR as u64).to_le_bytes()); // e_phoff
    packed[40..48].fill(0); // e_shoff
    packed[56..58].copy_from_slice(&u16::try_from(kept.len())?.to_le_bytes()); // e_phnum
    packed[60..64].fill(0); // e_shnum, e_shstrndx
    packed.resize(EHDR + kept.len() * PHDR, 0);
    let mut places: Vec<(u64, u64, u64)> = Vec::new(); // (old offset, size, new offset) of the loads
    for (index, segment) in kept.iter().enumerate() {
        let offset = match segment.kind {
            PT_LOAD => {
                packed.resize(packed.len().next_multiple_of(4096), 0);
                let new = packed.len() as u64;
                let bytes =
                    slice(file, usize::try_from(segment.offset)?, usize::try_from(segment.file_size)?)?;
                packed.extend_from_slice(bytes);
                places.push((segment.offset, segment.file_size, new));
                new
            }
            // The notes lie inside a loaded segment, which comes before them.
            _ => moved(segment, &places)?,
        };
        let at = EHDR + index * PHDR;
        packed[at..at + PHDR].copy_from_slice(segment.header);
        packed[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
        if segment.kind == PT_LOAD {
            packed[at + 48..at + 56].copy_from_slice(&4096u64.to_le_bytes()); // p_align
        }
    }
    Ok(packed)
}

fn moved(segment: &Segment, places: &[(u64, u64, u64)]) -> Result<u64> {
    let end = segment.offset + segment.file_size;
    let place = places.iter().find(|(old, size, _)| *old <= segment.offset && end <= old + size);
    let Some((old, _, new)) = place else { bail!("the notes are in no loaded segment") };
    Ok(segment.offset - old + new)
}

fn slice(file: &[u8], at: usize, size: usize) -> Result<&[u8]> {
    at.checked_add(size)
        .and_then(|end| file.get(at..end))
        .with_context(|| format!("the file ends before {size} bytes at {at}"))
}

fn u16_at(file: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(slice(file, at, 2)?.try_into()?))
}

fn u64_at(file: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(slice(file, at, 8)?.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two program headers: a load at `physical` from offset 0x1000, and a note inside it.
    fn image(physical: u64, entry: u64) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..20].copy_from_slice(&[2, 0, 62, 0]);
        file[24..32].copy_from_slice(&entry.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..58].copy_from_slice(&[56, 0, 2, 0]);
        let mut header = |index: usize, kind: u32, offset: u64, size: u64| {
            let at = 64 + index * 56;
            file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
            file[at + 4] = 5;
            for (field, value) in [(8, offset), (24, physical), (32, size), (40, size)] {
                file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        };
        header(0, PT_LOAD, 0x1000, 64);
        header(1, PT_NOTE, 0x1010, 8);
        file.extend((0u8..64).chain([0xee; 100]));
        file
    }

    #[test]
    fn keeps_the_segments_and_drops_the_rest() {
        let packed = loadable(&image(LINKED_AT, LINKED_AT + 8)).unwrap();
        let segments = segments(&packed).unwrap();
        assert_eq!(packed.len(), 4096 + 64);
        assert_eq!((segments[0].offset, segments[1].offset), (4096, 4096 + 16));
        assert_eq!(&packed[4096..], &(0u8..64).collect::<Vec<_>>());
        assert_eq!(u64_at(&packed, 24).unwrap(), LINKED_AT + 8);
    }

    #[test]
    fn refuses_what_a_guest_cannot_be_entered_at() {
        assert!(loadable(&image(LINKED_AT, LINKED_AT + 64)).unwrap_err().to_string().contains("entry point"));
        assert!(loadable(&image(1 << 20, 1 << 20)).unwrap_err().to_string().contains("linked at"));
        assert!(loadable(b"\x7fELF\x01").is_err());
        let whole = image(LINKED_AT, LINKED_AT);
        for end in 0..whole.len() - 100 {
            assert!(loadable(&whole[..end]).is_err(), "cut at {end}");
        }
    }
}
