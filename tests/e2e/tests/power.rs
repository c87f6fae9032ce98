//! The power fails: what was said to be done is there, nothing half is taken for whole, and `doctor --repair` sees to
//! the rest.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use artifact::temp::sync_dir;
use artifact::{
    Digest, MachineFile, MachineFileWriter, SectionHead, SectionKind, VerifyOptions, WriterOptions,
};
use e2e::power::{Disk, pause};
use e2e::{Home, instant, rounds, text};
use store::{CheckOptions, Fault, Origin, Store};

const ORDERS: &str = "SMOLVM_TEST_POWER";

/// What the writer says to have done, by the number of its turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    file: u64,
    tag: u64,
}

fn bytes(turn: u64) -> Vec<u8> {
    (0..100_000u64).map(|i| (i.wrapping_mul(turn | 1).wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// What the child does; without orders nothing: a file in the place of the last, its import, a name for it.
#[test]
fn in_a_child() {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let (disk, how) = orders.split_once(' ').unwrap();
    let (disk, careful) = (Path::new(disk), how == "careful");
    let store = Store::open(&disk.join("store")).unwrap();
    let file = disk.join("m.smolmachine");
    println!("\nbegun");
    for turn in 1u64.. {
        let options = WriterOptions { durable: careful, ..WriterOptions::default() };
        let mut writer = MachineFileWriter::create_with(&file, options).unwrap();
        writer.add_bytes(SectionHead::new(SectionKind::Spec, 1), &turn.to_le_bytes()).unwrap();
        writer.add_bytes(SectionHead::new(SectionKind::RootImage, 1), &bytes(turn)).unwrap();
        writer.finish().unwrap();
        if how == "names-first" {
            sync_dir(disk).unwrap();
        }
        println!("file {turn}");
        if careful {
            let pin = store.import(&file).unwrap();
            store.tag("m", &pin.id(), Origin::Built).unwrap();
            println!("tag {turn}");
        }
    }
}

/// The turn of a whole file.
fn turn_of(file: &MachineFile) -> Result<u64, String> {
    file.verify_all(VerifyOptions::default()).map_err(|e| e.to_string())?;
    let turn = file.read_required(SectionKind::Spec, 0, 8).map_err(|e| e.to_string())?;
    let turn = u64::from_le_bytes(turn.try_into().map_err(|_| "no turn")?);
    let root = file.read_required(SectionKind::RootImage, 0, 1 << 20).map_err(|e| e.to_string())?;
    if root == bytes(turn) { Ok(turn) } else { Err("sections of different turns".into()) }
}

/// What is there after the power came again; an error where something half is taken for whole.
fn found(disk: &Path, promised: Done) -> Result<Done, String> {
    let mut found = Done::default();
    let path = disk.join("m.smolmachine");
    found.file = turn_of(&MachineFile::open_path(&path).map_err(|e| e.to_string())?)?;
    if promised.tag > 0 {
        let store = Store::open(&disk.join("store")).map_err(|e| e.to_string())?;
        let open = |id: &Digest| store.pin(id).and_then(|pin| pin.open()).map_err(|e| e.to_string());
        for id in store.ids().map_err(|e| e.to_string())? {
            turn_of(&open(&id)?)?;
        }
        let tag = store.resolve("m").map_err(|e| e.to_string())?.ok_or("the name is lost")?;
        found.tag = turn_of(&open(&tag.id)?)?;
        let faults = store.check(CheckOptions { repair: true, progress: None }).map_err(|e| e.to_string())?;
        if faults.iter().any(|fault| !matches!(fault.fault, Fault::Leftover | Fault::DamagedRecord)) {
            return Err(format!("{faults:?}"));
        }
    }
    Ok(found)
}

/// Cuts the power at many instants of the writer's life: how often nothing was lost, and what was else.
fn cuts(how: &str, count: u64) -> Option<(u64, Vec<String>)> {
    let dir = tempfile::tempdir().unwrap();
    let (mut kept, mut lost) = (0, Vec::new());
    for round in 0..count {
        let disk = Disk::make(&dir.path().join("disk"), 64)?;
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "in_a_child", "--nocapture"]);
        child.env(ORDERS, format!("{} {how}", disk.path().display()));
        let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut promised = Done::default();
        let turns = 1 + round % 4;
        for line in lines.by_ref() {
            match line.split_once(' ').map(|(what, turn)| (what, turn.parse())) {
                Some(("file", Ok(turn))) => promised.file = turn,
                Some(("tag", Ok(turn))) => promised.tag = turn,
                _ => continue,
            }
            if promised.file == turns && (how != "careful" || promised.tag == turns) {
                break;
            }
        }
        std::thread::sleep(instant(round, Duration::from_millis(15)));
        pause(&child);
        let after = disk.cut(&dir.path().join("after"));
        child.kill().unwrap();
        child.wait().unwrap();
        match found(after.path(), promised) {
            Ok(found) if found.file >= promised.file && found.tag >= promised.tag => kept += 1,
            Ok(found) => lost.push(format!("{found:?} of {promised:?}")),
            Err(error) => lost.push(error),
        }
    }
    Some((kept, lost))
}

#[test]
fn what_was_promised_survives_a_power_failure() {
    let count = rounds(8, 200);
    let Some((kept, lost)) = cuts("careful", count) else { return };
    assert_eq!((kept, lost), (count, Vec::<String>::new()));
}

#[test]
fn control_without_care_things_are_lost_or_torn() {
    // Nothing is brought to the disk; or the name is, and what it stands for is not.
    for (how, said) in [("careless", "No such file"), ("names-first", "this is a file of zeros")] {
        let Some((kept, lost)) = cuts(how, rounds(3, 20)) else { return };
        println!("{how}: {kept} kept; {lost:?}");
        assert!(lost.iter().any(|lost| lost.contains(said)), "{how}: {kept} kept, {lost:?}");
    }
}

#[test]
fn machines_and_files_that_are_done_are_done() {
    let home = Home::new("soft");
    let Some(disk) = Disk::make(&home.path("disk"), 512) else { return };
    let smolvm = |disk: &Disk, args: &[&str]| {
        let output = home.command(args).env("SMOLVM_HOME", disk.path().join("home")).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{args:?}: {out}\n{err}");
        out
    };
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    smolvm(&disk, &["build", "-q", "-o", "disk/x.smolmachine"]);
    smolvm(&disk, &["run", "-d", "--name", "m", "-v", "data:/data", "disk/x.smolmachine"]);
    smolvm(&disk, &["exec", "m", "sh", "-c", "echo kept >/file; echo mine >/data/file"]);
    smolvm(&disk, &["freeze", "-q", "m"]);
    {
        let after = disk.cut(&home.path("after"));
        smolvm(&after, &["verify", "after/x.smolmachine"]);
        // The store's needs name the directories of the first disk, which is there: nothing may be pruned.
        smolvm(&after, &["doctor", "--repair"]);
        assert!(smolvm(&after, &["prune"]).contains("0 B freed"));
        smolvm(&after, &["start", "m"]);
        assert_eq!(smolvm(&after, &["exec", "m", "cat", "/file", "/data/file"]), "kept\nmine\n");
        smolvm(&after, &["rm", "-f", "m"]);
    }
    // One that runs when the power fails is dead then, and its snapshot is whole.
    smolvm(&disk, &["run", "-d", "--name", "n", "disk/x.smolmachine"]);
    smolvm(&disk, &["exec", "n", "sh", "-c", "echo kept >/file"]);
    smolvm(&disk, &["snapshot", "-q", "n", "-o", "disk/s.smolmachine"]);
    {
        let after = disk.cut(&home.path("again"));
        smolvm(&after, &["verify", "again/s.smolmachine"]);
        smolvm(&after, &["doctor", "--repair"]);
        assert_eq!(smolvm(&after, &["run", "again/s.smolmachine", "--", "cat", "/file"]), "kept\n");
        smolvm(&after, &["start", "m"]);
        smolvm(&after, &["rm", "-f", "m"]);
    }
    smolvm(&disk, &["rm", "-f", "n"]);
    smolvm(&disk, &["rm", "-f", "m"]);
}
