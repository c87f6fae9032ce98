//! The hardware-reduced ACPI tables (ACPI 6.5): RSDP, XSDT, FADT, MADT, DSDT with the virtio-mmio
//! slots (`LNRO0005`), the serial port, the generic event device and VMGenID.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use guestmem::GuestMemory;

use crate::layout;
use crate::load::Error;

const OEM_ID: [u8; 6] = *b"SMOLVM";
const OEM_TABLE: [u8; 8] = *b"SMOLVM01";

/// One virtio-mmio device as the guest finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest-physical base of its registers.
    pub base: u64,
    /// Bytes of registers.
    pub size: u64,
    /// Its edge-triggered interrupt.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct AcpiConfig {
    /// 1 to 16; local APIC ids are 0 to vcpus - 1.
    pub vcpus: u32,
    pub virtio: Vec<VirtioSlot>,
}

/// Writes all tables and returns the RSDP's address.
pub(crate) fn write_tables(memory: &GuestMemory, config: &AcpiConfig) -> Result<u64, Error> {
    let mut next = layout::ACPI_START + 64;
    let mut place = |table: &dyn Aml| -> Result<u64, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let (at, end) = (next, next + bytes.len() as u64);
        let no_room = Error::NoRoom { what: "the ACPI tables", need: end };
        if end > layout::VMGENID {
            return Err(no_room);
        }
        memory.write(at, &bytes).map_err(|_| no_room)?;
        next = end.next_multiple_of(16);
        Ok(at)
    };
    let dsdt = place(&dsdt(config))?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(config.vcpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt)?;
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    memory
        .write(layout::ACPI_START, &rsdp)
        .map_err(|_| Error::NoRoom { what: "the ACPI tables", need: layout::ACPI_END })?;
    Ok(layout::ACPI_START)
}

/// Fixed ACPI description table, revision 6 (ACPI 6.5, 5.2.9).
fn fadt(dsdt: u64) -> Sdt {
    const RESET_REG_SUP: u32 = 1 << 10;
    const HW_REDUCED: u32 = 1 << 20;
    /// No VGA, no MSI-incapable, no CMOS RTC: IA-PC boot flags bits 2 and 5.
    const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;
    let mut t = Sdt::new(*b"FACP", 276, 6, OEM_ID, OEM_TABLE, 1);
    t.write_u16(109, BOOT_FLAGS);
    t.write_u32(112, RESET_REG_SUP | HW_REDUCED);
    t.write(116, GenericAddress::mmio_address::<u8>(layout::POWER_BASE + layout::RESET));
    t.write_u8(128, layout::RESET_VALUE);
    t.write_u8(131, 5); // FADT minor version
    t.write_u64(140, dsdt);
    t.write(244, GenericAddress::mmio_address::<u8>(layout::POWER_BASE + layout::SLEEP_CONTROL));
    t.write(256, GenericAddress::mmio_address::<u8>(layout::POWER_BASE + layout::SLEEP_STATUS));
    t.write_bytes(268, b"SMOLVM\0\0");
    t.update_checksum();
    t
}

/// Multiple APIC description table (ACPI 6.5, 5.2.12): the IOAPIC and one local APIC per vCPU.
fn madt(vcpus: u32) -> Sdt {
    let mut t = Sdt::new(*b"APIC", 44, 6, OEM_ID, OEM_TABLE, 1);
    t.write_u32(36, arch::x86_64::msr::APIC_DEFAULT_BASE as u32);
    for id in 0..vcpus {
        let id = id as u8;
        t.append_slice(&[0, 8, id, id, 1, 0, 0, 0]); // processor local APIC, enabled
    }
    let base = (layout::IOAPIC_BASE as u32).to_le_bytes();
    t.append_slice(&[1, 12, 0, 0, base[0], base[1], base[2], base[3], 0, 0, 0, 0]);
    t.update_checksum();
    t
}

fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn dsdt(config: &AcpiConfig) -> Sdt {
    let mut t = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE, 1);
    let mut body = Vec::new();
    for (i, slot) in config.virtio.iter().enumerate() {
        virtio_device(i, *slot).iter().for_each(|b| body.push(*b));
    }
    serial_device(&mut body);
    generation_device(&mut body);
    event_device(&mut body);
    t.append_slice(&Scope::raw(Path::new("\\_SB_"), body));
    let mut sleep = Vec::new();
    let s5 = layout::SLP_TYP_S5;
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&s5, &s5, &aml::ZERO, &aml::ZERO]))
        .to_aml_bytes(&mut sleep);
    t.append_slice(&sleep);
    t.update_checksum();
    t
}

fn virtio_device(index: usize, slot: VirtioSlot) -> Vec<u8> {
    let mut out = Vec::new();
    Device::new(
        Path::new(&format!("VR{index:02}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &(index as u8)),
            &Name::new(Path::new("_CCA"), &aml::ONE),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, slot.base as u32, slot.size as u32),
                    &edge(slot.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut out);
    out
}

fn serial_device(out: &mut Vec<u8>) {
    let port = layout::SERIAL_PORT;
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&edge(layout::SERIAL_GSI), &IO::new(port, port, 0, 8)]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

/// Virtual Machine Generation ID (Microsoft's specification; Linux: drivers/virt/vmgenid.c).
fn generation_device(out: &mut Vec<u8>) {
    Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"SMOL0001"),
            &Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&(layout::VMGENID as u32), &aml::ZERO])),
        ],
    )
    .to_aml_bytes(out);
}

/// Generic event device (ACPI 6.5, 5.6.9): reads and clears the event register, tells VMGenID.
fn event_device(out: &mut Vec<u8>) {
    let events = Path::new("ESTA");
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &aml::ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&edge(layout::GED_GSI)])),
            &OpRegion::new(Path::new("EREG"), OpRegionSpace::SystemMemory, &(layout::GED_BASE as u32), &4u8),
            &Field::new(
                Path::new("EREG"),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"ESTA", 32)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &events),
                    &And::new(&Local(1), &Local(0), &aml::ONE),
                    &If::new(&Local(1), vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(out);
}
