//! What two files have in common takes its room once, where the file system can share blocks.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionHead, SectionKind};
use common::{Home, check_objects, write_machine};
use store::Store;

/// An XFS of its own, unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    fn make(image: &Path, at: PathBuf) -> Option<Disk> {
        File::create(image).unwrap().set_len(400 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let made = quietly(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(image))
            && quietly(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at));
        if !made {
            eprintln!("SKIPPED: mkfs.xfs is not installed, or nothing can be mounted here");
        }
        made.then_some(Disk(at))
    }

    /// Bytes in use.
    fn used(&self) -> u64 {
        assert!(quietly(Command::new("sync").arg("-f").arg(&self.0)));
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        quietly(Command::new("umount").arg("-l").arg(&self.0));
    }
}

fn quietly(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn a_snapshot_shares_its_bases_root() {
    const ROOT: u64 = 12_000_000;
    let home = Home::new();
    let Some(disk) = Disk::make(&home.path("image"), home.path("disk")) else { return };
    let store = Store::open(&disk.0.join("store")).unwrap();
    // Both come from another file system, where they share nothing.
    let base = home.path("base");
    write_machine(&base, 1, ROOT as usize);
    let file = MachineFile::open_path(&base).unwrap();
    let mut writer = MachineFileWriter::create(&home.path("snapshot")).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::MemoryPages, 1), &[7; 1_000_000]).unwrap();
    for section in file.sections() {
        writer.copy_section(&file, section, CopyCheck::Rehash).unwrap();
    }
    writer.finish().unwrap();
    let before = disk.used();
    store.import(&base).unwrap();
    let one = disk.used() - before;
    store.import(&home.path("snapshot")).unwrap();
    let both = disk.used() - before;
    println!("{one} bytes, with the snapshot {both}");
    assert!(one >= ROOT && both - one < ROOT / 4, "{one}, then {both}");
    assert_eq!(check_objects(&store), 2);
    // Each has what it needs without the other one.
    store.remove(&file.id().to_string()).unwrap();
    assert_eq!(check_objects(&store), 1);
}
