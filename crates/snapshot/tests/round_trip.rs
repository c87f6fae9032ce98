//! Saved state and memory through the public surface.

use arch::x86_64::state::{Events, LapicState, MpState, Msrs, Segment, TableReg, VcpuState};
use artifact::{MachineFile, MachineFileWriter};
use guestmem::GuestMemory;
use hv::{ClockState, CpuidLeaf, EngineKind};
use snapshot::{Error, MachineState, PartState, STATE_VERSION, map_memory, write_memory};

fn vcpu() -> VcpuState {
    let segment = Segment { selector: 0x10, base: 1, limit: 2, attr: 3 };
    VcpuState {
        gpr: std::array::from_fn(|i| i as u64),
        rip: 0x1000,
        rflags: 2,
        seg: [segment; 6],
        tr: segment,
        ldtr: segment,
        gdtr: TableReg { base: 4, limit: 5 },
        idtr: TableReg { base: 6, limit: 7 },
        cr0: 1,
        cr2: 2,
        cr3: 3,
        cr4: 4,
        cr8: 5,
        dr: [0; 6],
        fxsave: vec![9; 512],
        msrs: Msrs { efer: 0x500, ..Msrs::default() },
        tsc: 77,
        lapic: LapicState { regs: vec![8; 1024], deadline_ticks: Some(99) },
        events: Events { exception: Some((14, Some(2))), ..Events::default() },
        mp_state: MpState::Halted,
    }
}

fn state() -> MachineState {
    MachineState {
        template_version: 1,
        cpuid: vec![CpuidLeaf { leaf: 1, subleaf: None, eax: 2, ebx: 3, ecx: 4, edx: 5 }],
        tsc_khz: 1_000_000,
        clock: ClockState { kvmclock_ns: 12345 },
        frozen_realtime_ns: 1,
        engine: EngineKind::Soft,
        vcpus: vec![vcpu()],
    }
}

#[test]
fn state_survives_and_its_encoding_is_pinned() {
    let bytes = state().encode().unwrap();
    assert_eq!(MachineState::decode(STATE_VERSION, &bytes).unwrap(), state());
    // A change here is a change of the format: see src/tripwires.rs.
    let digest = artifact::hash::Digest::of(&bytes).to_string();
    assert_eq!((bytes.len(), &digest[..16]), (1653, "3f379fb18fe82e84"));
}

#[test]
fn parts_survive() {
    let parts = vec![PartState::new("serial", &(1u8, "x")).unwrap()];
    let bytes = PartState::encode_all(&parts).unwrap();
    let back = PartState::decode_all(STATE_VERSION, &bytes).unwrap();
    assert_eq!(back, parts);
    assert_eq!(back[0].get::<(u8, String)>().unwrap(), (1, "x".to_owned()));
    for len in 0..bytes.len() {
        assert!(PartState::decode_all(STATE_VERSION, &bytes[..len]).is_err());
    }
}

#[test]
fn damaged_state_is_refused_and_never_panics() {
    let bytes = state().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(MachineState::decode(STATE_VERSION, &bytes[..len]).is_err());
    }
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0xff;
        let _ = MachineState::decode(STATE_VERSION, &bad);
    }
    assert!(matches!(MachineState::decode(2, &bytes), Err(Error::Version { .. })));
}

#[test]
fn memory_comes_back_copy_on_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.smolmachine");
    let memory = GuestMemory::new(16 << 20).unwrap();
    for page in [0u64, 1, 2, 700, 702, 4095] {
        memory.write(page << 12, &[(page % 251) as u8 + 1; 4096]).unwrap();
    }
    let mut writer = MachineFileWriter::create(&path).unwrap();
    let stats = write_memory(&mut writer, &memory).unwrap();
    assert_eq!((stats.nonzero_pages, stats.extents), (6, 4));
    writer.finish().unwrap();

    let file = MachineFile::open_path(&path).unwrap();
    let clones: Vec<GuestMemory> = (0..2).map(|_| GuestMemory::new(16 << 20).unwrap()).collect();
    for clone in &clones {
        map_memory(&file, clone).unwrap();
        for page in 0..clone.page_count() as u64 {
            assert_eq!(clone.read_le::<u64>(page << 12), memory.read_le::<u64>(page << 12), "page {page}");
        }
    }
    clones[0].write(700 << 12, b"mine").unwrap();
    assert_eq!(clones[1].read_le::<u32>(700 << 12), memory.read_le::<u32>(700 << 12));
    assert!(clones[0].is_dirty(700) && !clones[1].is_dirty(700));
}

#[test]
fn a_map_for_another_size_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.smolmachine");
    let memory = GuestMemory::new(1 << 20).unwrap();
    memory.write(0, b"x").unwrap();
    let mut writer = MachineFileWriter::create(&path).unwrap();
    write_memory(&mut writer, &memory).unwrap();
    writer.finish().unwrap();
    let other = GuestMemory::new(2 << 20).unwrap();
    let file = MachineFile::open_path(&path).unwrap();
    assert!(matches!(map_memory(&file, &other), Err(Error::Malformed { .. })));
}
