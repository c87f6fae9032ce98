//! A frozen machine that asks for more than there is here: each missing thing is named, and nothing runs.

use std::fs;
use std::path::Path;

use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionHead, SectionKind};
use e2e::{Home, text};
use snapshot::{MachineState, PartState};

/// `from` with another CPU state and other devices, otherwise the same, in `to`.
fn changed(from: &Path, to: &Path, change: impl Fn(&mut MachineState, &mut Vec<PartState>)) {
    let file = MachineFile::open_path(from).unwrap();
    let read = |kind| {
        let section = file.section(kind).unwrap();
        (section.version, file.read_section(section, 1 << 20).unwrap())
    };
    let (version, bytes) = read(SectionKind::CpuState);
    let mut state = MachineState::decode(version, &bytes).unwrap();
    let (_, bytes) = read(SectionKind::DeviceState);
    let mut parts = PartState::decode_all(version, &bytes).unwrap();
    change(&mut state, &mut parts);
    let mut writer = MachineFileWriter::create(to).unwrap();
    for section in file.sections() {
        let head = SectionHead::like(section);
        match section.kind() {
            Some(SectionKind::CpuState) => writer.add_bytes(head, &state.encode().unwrap()),
            Some(SectionKind::DeviceState) => writer.add_bytes(head, &PartState::encode_all(&parts).unwrap()),
            _ => writer.copy_section(&file, section, CopyCheck::Rehash),
        }
        .unwrap();
    }
    writer.finish().unwrap();
}

/// `from` with its state in another version, otherwise the same, in `to`.
fn newer(from: &Path, to: &Path, kind: SectionKind) {
    let file = MachineFile::open_path(from).unwrap();
    let mut writer = MachineFileWriter::create(to).unwrap();
    for section in file.sections() {
        let mut head = SectionHead::like(section);
        head.version += u32::from(section.kind() == Some(kind));
        writer.copy_section_as(head, &file, section, CopyCheck::Rehash).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_a_file_asks_for_and_is_not_here_is_named_before_anything_runs() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    let from = home.path("x.smolmachine");
    type Change = Box<dyn Fn(&mut MachineState, &mut Vec<PartState>)>;
    let leaf = |number: u32, set: Box<dyn Fn(&mut hv::CpuidLeaf)>| -> Change {
        Box::new(move |state, _| {
            let of =
                |l: &&mut hv::CpuidLeaf| l.leaf == number && l.subleaf.is_none_or(|subleaf| subleaf == 0);
            set(state.cpuid.iter_mut().find(of).expect("a leaf of the template"));
        })
    };
    let cases: Vec<(&str, &[&str], Change)> = vec![
        ("same", &[], Box::new(|_, _| {})),
        ("avx", &["CPU feature avx"], leaf(1, Box::new(|l| l.ecx |= 1 << 28))),
        (
            "avx512",
            &["CPU feature avx2", "CPU feature avx512f"],
            leaf(7, Box::new(|l| l.ebx |= 1 << 5 | 1 << 16)),
        ),
        ("template", &["CPU template version 2"], Box::new(|state, _| state.template_version = 2)),
        (
            "device",
            &["device `gpu`", "device `tpm`"],
            Box::new(|_, parts| {
                for name in ["gpu", "tpm"] {
                    parts.push(PartState { name: name.into(), bytes: Vec::new() });
                }
            }),
        ),
    ];
    for (name, missing, change) in cases {
        let to = home.path(&format!("{name}.smolmachine"));
        changed(&from, &to, change);
        let path = format!("./{name}.smolmachine");
        let doctor = home.run(&["doctor", &path]);
        let run = home.run(&["run", &path, "--", "echo", "ran"]);
        if missing.is_empty() {
            assert_eq!(
                (doctor.status.code(), text(&run.stdout)),
                (Some(0), "ran\n".into()),
                "{}",
                text(&run.stderr)
            );
            continue;
        }
        assert_eq!(doctor.status.code(), Some(1), "{name}: {}", text(&doctor.stdout));
        assert_eq!((run.status.code(), text(&run.stdout)), (Some(125), String::new()), "{name}");
        for word in missing {
            assert!(text(&doctor.stdout).contains(word), "{name}: {}", text(&doctor.stdout));
            assert!(text(&run.stderr).contains(word), "{name}: {}", text(&run.stderr));
        }
        let json: serde_json::Value =
            serde_json::from_slice(&home.run(&["doctor", "--json", &path]).stdout).unwrap();
        assert_eq!(json["runs"], false, "{json}");
        assert_eq!(json["verdict"]["missing"].as_array().map(Vec::len), Some(missing.len()), "{json}");
    }
    for (kind, missing) in
        [(SectionKind::CpuState, "CPU state version 2"), (SectionKind::DeviceState, "device state version 2")]
    {
        newer(&from, &home.path("newer.smolmachine"), kind);
        let doctor = home.run(&["doctor", "newer.smolmachine"]);
        assert_eq!(doctor.status.code(), Some(1), "{}", text(&doctor.stderr));
        assert!(text(&doctor.stdout).contains(missing), "{}", text(&doctor.stdout));
        let said = home.fails(&["run", "./newer.smolmachine", "--", "echo", "ran"], 125);
        assert!(said.contains("version 2"), "{said}");
    }
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}
