//! `initramfs.cpio`: what the kernel unpacks into its first root: the agent as `/init`, mount points,
//! and `/dev/console` so that PID 1 starts with its standard streams open.
//!
//! Not compressed: unpacking is then a copy. The order, times and owners are fixed.
//! Format: "newc" cpio, the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use anyhow::Result;

use super::build_info::BuildInfo;
use super::cache;
use crate::paths::Paths;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An entry of the archive.
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    /// Major and minor number of a device node.
    device: (u32, u32),
    data: &'a [u8],
}

/// Publishes `initramfs.cpio`.
pub fn build(paths: &Paths, agent: &[u8], info: &mut BuildInfo) -> Result<()> {
    let image = image(agent)?;
    cache::publish(&image, &paths.guest.join("initramfs.cpio"))?;
    info.set_part("initramfs", &image);
    Ok(())
}

fn image(agent: &[u8]) -> Result<Vec<u8>> {
    let directory = |name| Entry { name, mode: DIRECTORY, device: (0, 0), data: &[] };
    let mut archive = Vec::new();
    let entries = [
        directory("dev"),
        directory("proc"),
        directory("sys"),
        directory("run"),
        directory("newroot"),
        Entry { name: "dev/console", mode: CHARACTER_DEVICE, device: (5, 1), data: &[] },
        Entry { name: "init", mode: PROGRAM, device: (0, 0), data: agent },
        Entry { name: "TRAILER!!!", mode: 0, device: (0, 0), data: &[] },
    ];
    for (index, entry) in entries.iter().enumerate() {
        append(&mut archive, u32::try_from(index)? + 1, entry)?;
    }
    Ok(archive)
}

/// Header of 6 + 13 * 8 hexadecimal characters, name and NUL, data; name and data padded to 4 bytes.
fn append(archive: &mut Vec<u8>, inode: u32, entry: &Entry) -> Result<()> {
    let links = if entry.mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let fields = [
        inode,
        entry.mode,
        0, // uid
        0, // gid
        links,
        0, // mtime
        u32::try_from(entry.data.len())?,
        0, // device that holds the file: major
        0, // and minor
        entry.device.0,
        entry.device.1,
        u32::try_from(entry.name.len())? + 1,
        0, // check sum, unused in this variant
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08X}").bytes());
    }
    archive.extend(entry.name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(entry.data);
    archive.resize(archive.len().next_multiple_of(4), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_is_aligned_and_the_agent_is_init() {
        let agent = [7u8; 4099];
        let archive = image(&agent).unwrap();
        let (mut at, mut names, mut init) = (0, Vec::new(), Vec::new());
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |index: usize| {
                let digits = &archive[at + 6 + index * 8..at + 14 + index * 8];
                usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(archive[at + 110..at + 109 + name_size].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "init" {
                init = archive[data..data + size].to_vec();
                assert_eq!(field(1), 0o100_755);
            }
            names.push(name);
            at = (data + size).next_multiple_of(4);
        }
        assert_eq!(init, agent);
        assert_eq!(names.last().map(String::as_str), Some("TRAILER!!!"));
        assert!(
            names.iter().position(|name| name == "dev") < names.iter().position(|name| name == "dev/console")
        );
    }
}
