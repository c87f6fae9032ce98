//! The embedded parts are what they are said to be.

use disk::{Disk, SparseDisk};

#[test]
fn the_kernel_is_an_elf_entered_above_16_mib() {
    let kernel = assets::kernel();
    assert!(kernel.starts_with(b"\x7fELF\x02\x01"));
    let entry = u64::from_le_bytes(kernel[24..32].try_into().unwrap());
    assert!((0x100_0000..0x200_0000).contains(&entry), "entry {entry:#x}");
    assert!(assets::kernel_release().starts_with("6.12"), "{}", assets::kernel_release());
}

#[test]
fn the_initramfs_is_a_cpio_and_busybox_a_program() {
    assert!(assets::initramfs().starts_with(b"070701"));
    assert!(assets::busybox().starts_with(b"\x7fELF\x02\x01"));
}

#[test]
fn the_blank_disks_are_ext4_and_nearly_nothing() {
    for (list, size) in [(assets::blank_ext4_list(), 16u64 << 30), (assets::volume_ext4_list(), 128 << 20)] {
        assert!(list.len() < 64 * 4104, "{} bytes", list.len());
        let disk = SparseDisk::new(list).unwrap();
        assert_eq!(disk.size(), size);
        // The superblock is at byte 1024; its magic number at 0x38 in it (kernel docs, ext4/super.rst).
        let mut magic = [0; 2];
        disk.read_at(1024 + 0x38, &mut magic).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
    }
}

#[test]
fn build_info_names_every_part() {
    let info = assets::build_info();
    for part in ["vmlinux", "initramfs", "busybox", "blank_ext4", "volume_ext4", "agent"] {
        assert!(info.iter().any(|(key, _)| *key == format!("{part}_blake3")), "{part}");
    }
    assert!(info.is_sorted());
}
