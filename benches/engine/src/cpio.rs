//! The first root: an uncompressed "newc" archive (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst) with one program as `/init`.

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The archive; the same entries as the agent's own.
pub fn initramfs(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let directories = ["dev", "proc", "sys", "run", "newroot"];
    for (inode, name) in (1..).zip(directories) {
        append(&mut archive, inode, (name, DIRECTORY), (0, 0), &[]);
    }
    append(&mut archive, 10, ("dev/console", CHARACTER_DEVICE), (5, 1), &[]);
    append(&mut archive, 11, ("init", PROGRAM), (0, 0), init);
    append(&mut archive, 12, ("TRAILER!!!", 0), (0, 0), &[]);
    archive
}

fn append(archive: &mut Vec<u8>, inode: u32, (name, mode): (&str, u32), device: (u32, u32), data: &[u8]) {
    let (size, name_size) = (data.len() as u32, name.len() as u32 + 1);
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08X}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
