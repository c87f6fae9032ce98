//! The loader through its public surface: a tiny ELF, the tables where the guest finds them.

use boot::{AcpiConfig, BootConfig, BzImage, Error, VirtioSlot, layout, load};
use guestmem::GuestMemory;

/// A one-segment ELF64 whose code is `code`, at 16 MiB.
fn tiny_kernel(code: &[u8]) -> Vec<u8> {
    let mut elf = vec![0u8; 120];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18..20].copy_from_slice(&62u16.to_le_bytes());
    elf[24..32].copy_from_slice(&0x100_0000u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64u64.to_le_bytes());
    elf[54..56].copy_from_slice(&56u16.to_le_bytes());
    elf[56..58].copy_from_slice(&1u16.to_le_bytes());
    elf[64..68].copy_from_slice(&1u32.to_le_bytes());
    elf[72..80].copy_from_slice(&120u64.to_le_bytes());
    elf[88..96].copy_from_slice(&0x100_0000u64.to_le_bytes());
    elf[96..104].copy_from_slice(&(code.len() as u64).to_le_bytes());
    elf[104..112].copy_from_slice(&0x1000u64.to_le_bytes());
    elf.extend_from_slice(code);
    elf
}

fn config<'a>(kernel: &'a [u8], line: &'a str) -> BootConfig<'a> {
    let virtio = (0..4).map(|i| VirtioSlot {
        base: layout::VIRTIO_BASE + i * layout::VIRTIO_STRIDE,
        size: layout::VIRTIO_STRIDE,
        gsi: layout::VIRTIO_GSI + i as u32,
    });
    BootConfig {
        kernel,
        initramfs: b"070701",
        command_line: line,
        rng_seed: [7; 32],
        acpi: AcpiConfig { vcpus: 2, virtio: virtio.collect() },
    }
}

fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
    let len: u32 = memory.read_le(at + 4).unwrap();
    let mut bytes = vec![0; len as usize];
    memory.read(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn everything_is_where_the_kernel_looks() {
    let memory = GuestMemory::new(64 << 20).unwrap();
    let kernel = tiny_kernel(b"\xf4");
    let loaded = load(&memory, &config(&kernel, "quiet")).unwrap();
    assert_eq!(loaded.vcpu.rip, 0x100_0000);
    assert_eq!(memory.read_le::<u8>(0x100_0000), Ok(0xf4));
    let initramfs: u32 = memory.read_le(layout::ZERO_PAGE + 0x218).unwrap();
    assert_eq!(memory.read_le::<u32>(u64::from(initramfs)), Ok(u32::from_le_bytes(*b"0707")));
    let rsdp: u64 = memory.read_le(layout::ZERO_PAGE + 0x70).unwrap();
    let xsdt: u64 = memory.read_le(rsdp + 24).unwrap();
    let tables: Vec<u64> = (0..2).map(|i| memory.read_le(xsdt + 36 + i * 8).unwrap()).collect();
    let dsdt: u64 = memory.read_le(tables[0] + 140).unwrap();
    for (at, name) in [(xsdt, b"XSDT"), (tables[0], b"FACP"), (tables[1], b"APIC"), (dsdt, b"DSDT")] {
        let bytes = table(&memory, at);
        assert_eq!(&bytes[..4], name);
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum of {name:?}");
    }
    if let Ok(dir) = std::env::var("SMOLVM_DUMP_ACPI") {
        std::fs::write(format!("{dir}/dsdt.aml"), table(&memory, dsdt)).unwrap();
        std::fs::write(format!("{dir}/facp.aml"), table(&memory, tables[0])).unwrap();
        std::fs::write(format!("{dir}/apic.aml"), table(&memory, tables[1])).unwrap();
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let memory = GuestMemory::new(64 << 20).unwrap();
    let kernel = tiny_kernel(b"\xf4");
    let line = "x".repeat(layout::CMDLINE_MAX);
    assert!(matches!(load(&memory, &config(&kernel, &line)), Err(Error::CommandLine(_))));
    let small = GuestMemory::new(8 << 20).unwrap();
    assert!(matches!(load(&small, &config(&kernel, "")), Err(Error::NoRoom { what: "the kernel", .. })));
}

#[test]
fn a_damaged_kernel_never_panics() {
    let memory = GuestMemory::new(64 << 20).unwrap();
    let kernel = tiny_kernel(b"\xf4");
    for len in 0..kernel.len() {
        let _ = load(&memory, &config(&kernel[..len], ""));
    }
    for at in 0..120 {
        for value in [0, 0x7f, 0xff] {
            let mut bad = kernel.clone();
            bad[at] = value;
            let _ = load(&memory, &config(&bad, ""));
        }
    }
}

#[test]
fn a_kernel_is_looked_at_without_a_machine() {
    assert_eq!(boot::inspect(&tiny_kernel(b"\xf4")).unwrap(), 0x100_0000..0x100_1000);
    let mut low = tiny_kernel(b"\xf4");
    low[88..96].copy_from_slice(&0x8000u64.to_le_bytes());
    assert!(boot::inspect(&low).unwrap_err().to_string().contains("first MiB"));
    let whole = tiny_kernel(b"\xf4");
    for cut in 0..whole.len() {
        assert!(boot::inspect(&whole[..cut]).is_err(), "{cut}");
    }
}

/// A bzImage of protocol 2.15 with this payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    image[0x236] = 1;
    image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image[0x300..0x306].copy_from_slice(b"6.1.9 ");
    image.extend_from_slice(&[0xcc; 16]);
    image.extend_from_slice(payload);
    image
}

#[test]
fn a_bzimage_says_where_its_kernel_lies() {
    let image = bzimage(b"packed");
    let header = BzImage::parse(&image).unwrap();
    assert_eq!((header.protocol, header.version.as_str(), header.is_64_bit), (0x020f, "6.1.9 ", true));
    assert_eq!(&image[header.payload], b"packed");
    // Whatever it claims, nothing beyond its own bytes.
    for cut in 0..image.len() {
        assert_eq!(BzImage::parse(&image[..cut]), None, "{cut}");
    }
    let mut lying = image.clone();
    for at in [0x248, 0x24c] {
        lying[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(BzImage::parse(&lying), None);
    }
    let mut old = image;
    old[0x206] = 7;
    assert_eq!(BzImage::parse(&old).unwrap().payload, 0..0);
}
