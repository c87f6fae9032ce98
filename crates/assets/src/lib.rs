//! What the binary carries for the guest: kernel, first root, busybox, blank disk. `cargo xtask guest`
//! makes them; the build compresses the large ones (zstd) and includes all; here they are unpacked when asked for.
//!
//! Next: `parts.rs` (the embedded bytes).

mod parts;

/// The guest kernel as one zstd frame: see [`kernel`].
pub fn kernel_packed() -> &'static [u8] {
    parts::KERNEL.packed()
}

/// The first root as one zstd frame: see [`initramfs`].
pub fn initramfs_packed() -> &'static [u8] {
    parts::INITRAMFS.packed()
}

/// The guest kernel: an ELF64 executable for x86-64, to be loaded by physical addresses and entered at
/// its entry point with the 64-bit boot protocol. About 11 MiB; some 15 ms to unpack.
pub fn kernel() -> Vec<u8> {
    parts::KERNEL.unpack()
}

/// The first root: an uncompressed "newc" cpio archive with the agent as `/init`.
pub fn initramfs() -> Vec<u8> {
    parts::INITRAMFS.unpack()
}

/// Debian's static busybox, the userland of the built-in machine.
pub fn busybox() -> Vec<u8> {
    parts::BUSYBOX.unpack()
}

/// An empty 16 GiB ext4 file system, the writable layer of a new instance, as the list of its blocks that are
/// not zero. All little-endian: u64 size of the disk in bytes; u32 number of blocks; then for each block its u64
/// index (in units of 4 KiB) and its 4096 bytes. Crate `disk` reads it where it lies (`SparseDisk`).
pub fn blank_ext4_list() -> &'static [u8] {
    parts::BLANK_EXT4
}

/// An empty ext4 file system of 128 MiB, in the form of [`blank_ext4_list`]: what a new volume begins as. The
/// guest's kernel grows it to what it lies on, up to 4 TiB.
pub fn volume_ext4_list() -> &'static [u8] {
    parts::VOLUME_EXT4
}

/// What the parts were made from: (key, value) pairs in the order of the keys. Versions, package hashes,
/// and `<part>_blake3` and `<part>_bytes` of each part.
pub fn build_info() -> &'static [(&'static str, &'static str)] {
    parts::BUILD_INFO
}

/// The guest kernel's release, as `uname -r` prints it in the guest, e.g. `6.12.117-smolvm`.
pub fn kernel_release() -> &'static str {
    let entry = parts::BUILD_INFO.iter().find(|(key, _)| *key == "kernel_release");
    entry.map_or("unknown", |(_, release)| release)
}
