//! A writer that is killed at any instant: the file of the final name is whole, old or new, and what is left
//! beside it is recognised and goes.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use artifact::temp::{TempStyle, clean_leftovers, is_temp_name};
use artifact::{MachineFile, MachineFileWriter, SectionHead, SectionKind, VerifyOptions, WriterOptions};
use common::noise;

const FILE: &str = "SMOLVM_TEST_KILL_FILE";
const NAMED: &str = "SMOLVM_TEST_KILL_NAMED";

/// One of the files that the child writes, in turn, over each other: `turn` is in every section.
fn write(path: &Path, turn: u64, temp: TempStyle) {
    let options = WriterOptions { temp, ..WriterOptions::default() };
    let mut writer = MachineFileWriter::create_with(path, options).unwrap();
    writer.add_bytes(SectionHead::new(SectionKind::Spec, 1), &turn.to_le_bytes()).unwrap();
    let pages = noise(turn, 1 << 20);
    let fill = |at: u64, into: &mut [u8]| {
        into.copy_from_slice(&pages[at as usize..at as usize + into.len()]);
        Ok(())
    };
    writer.add_filled(SectionHead::new(SectionKind::MemoryPages, 1), 1 << 20, 2, fill).unwrap();
    writer.finish().unwrap();
}

/// Checks the file whole; which turn it is of.
fn turn_of(path: &Path) -> u64 {
    let file = MachineFile::open_path(path).unwrap();
    file.verify_all(VerifyOptions::default()).unwrap();
    let turn = file.read_required(SectionKind::Spec, 0, 8).unwrap();
    let turn = u64::from_le_bytes(turn.try_into().unwrap());
    let pages = file.read_required(SectionKind::MemoryPages, 0, 1 << 20).unwrap();
    assert!(pages == noise(turn, 1 << 20), "sections of different turns");
    turn
}

/// What the child does; without orders nothing.
#[test]
fn in_a_child() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let temp = if std::env::var_os(NAMED).is_some() { TempStyle::Named } else { TempStyle::Auto };
    println!("\nbegun");
    for turn in 1.. {
        write(Path::new(&path), turn, temp);
        println!("turn {turn} done");
    }
}

fn killed_at_any_instant(temp: TempStyle) {
    let rounds = if std::env::var_os("SMOLVM_LONG").is_some() { 500 } else { 50 };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.smolmachine");
    write(&path, 0, temp);
    let (mut leftovers, mut replaced) = (0, 0);
    for round in 0u64..rounds {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "in_a_child", "--nocapture"]).env(FILE, &path);
        if temp == TempStyle::Named {
            command.env(NAMED, "1");
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let turns = round % 3;
        let start = if turns == 0 { "begun".to_owned() } else { format!("turn {turns} done") };
        assert!(lines.any(|line| line.unwrap() == start));
        // Instants over several turns of some milliseconds each, by a sequence that fills the interval evenly.
        let micros = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        std::thread::sleep(Duration::from_micros(micros));
        child.kill().unwrap();
        child.wait().unwrap();

        let turn = turn_of(&path);
        assert!(turn >= turns, "a file that was there is gone");
        replaced += u64::from(turn != 0);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(name == "old.smolmachine" || is_temp_name(&name), "{name:?}");
        }
        leftovers += clean_leftovers(dir.path()).unwrap().len();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        write(&path, 0, temp);
    }
    println!("{rounds} kills: {replaced} after a whole turn, {leftovers} leftovers cleaned");
}

#[test]
fn without_a_name() {
    killed_at_any_instant(TempStyle::Auto);
}

#[test]
fn under_a_temporary_name() {
    killed_at_any_instant(TempStyle::Named);
}

#[test]
fn a_living_writers_file_is_not_cleaned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let options = WriterOptions { temp: TempStyle::Named, ..WriterOptions::default() };
    let mut first = MachineFileWriter::create_with(&path, options).unwrap();
    // A second writer cleans when it starts.
    drop(MachineFileWriter::create_with(&path, options).unwrap());
    assert_eq!(clean_leftovers(dir.path()).unwrap(), [""; 0].map(std::path::PathBuf::from));
    first.add_bytes(SectionHead::new(SectionKind::Spec, 1), b"x").unwrap();
    first.finish().unwrap();
    assert!(path.exists());
}
