//! The embedded parts are what they are said to be.

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
fn the_blank_disk_is_ext4_and_nearly_nothing() {
    let disk = assets::blank_ext4();
    assert_eq!(disk.size(), 16 << 30);
    assert!(disk.blocks().len() < 64, "{} blocks", disk.blocks().len());
    let (index, first) = disk.blocks().next().unwrap();
    assert_eq!(index, 0);
    // The superblock is at byte 1024; its magic number at 0x38 in it (kernel docs, ext4/super.rst).
    assert_eq!(first[1024 + 0x38..1024 + 0x3a], [0x53, 0xef]);
}

#[test]
fn build_info_names_every_part() {
    let info = assets::build_info();
    for part in ["vmlinux", "initramfs", "busybox", "blank_ext4", "agent"] {
        assert!(info.iter().any(|(key, _)| *key == format!("{part}_blake3")), "{part}");
    }
    assert!(info.is_sorted());
}
