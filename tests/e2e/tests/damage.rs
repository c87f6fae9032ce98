//! Machine files that are not what they should be: each fault in each section is refused by `verify`
//! and by `run`, with 125 and a message that names the file, what is wrong and the way out.

use std::fs;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use artifact::MachineFile;
use e2e::{Home, program, rounds, text};

/// A small machine file and its bytes.
fn whole(home: &Home) -> Vec<u8> {
    fs::write(home.path("Smolfile"), "name = \"x\"\nmemory = \"64MiB\"\n").unwrap();
    home.ok(&["build", "-q"]);
    fs::read(home.path("x.smolmachine")).unwrap()
}

fn refused(home: &Home, bytes: &[u8], what: &str, needles: &[&str]) {
    fs::write(home.path("bad.smolmachine"), bytes).unwrap();
    for verb in [&["verify", "bad.smolmachine"][..], &["run", "./bad.smolmachine", "--", "true"]] {
        let said = home.fails(verb, 125);
        assert!(said.contains("bad.smolmachine"), "{what}: {said}");
        assert!(needles.iter().any(|needle| said.contains(needle)), "{what}: {said}");
    }
}

#[test]
fn cut_short_at_every_section() {
    let home = Home::new("soft");
    let whole = whole(&home);
    let file = MachineFile::open_path(&home.path("x.smolmachine")).unwrap();
    assert!(file.sections().len() >= 8);
    for section in file.sections() {
        for at in [section.offset, section.offset + section.len / 2] {
            refused(&home, &whole[..at as usize], &section.name, &["cut short"]);
        }
    }
    refused(&home, &whole[..whole.len() - 1], "the last byte", &["cut short"]);
    refused(&home, &whole[..4096], "the header alone", &["cut short"]);
    refused(&home, &whole[..20], "less than a header", &["cut short", "not a machine file"]);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn a_flipped_bit_in_every_section() {
    let home = Home::new("soft");
    let whole = whole(&home);
    let file = MachineFile::open_path(&home.path("x.smolmachine")).unwrap();
    let flip = |at: u64| {
        let mut bad = whole.clone();
        bad[at as usize] ^= 1 << (at % 8);
        bad
    };
    for section in file.sections().iter().filter(|section| section.len > 0) {
        for at in [section.offset, section.offset + section.len / 2, section.offset + section.len - 1] {
            refused(&home, &flip(at), &section.name, &[&section.name]);
        }
    }
    let ways_out = ["damaged", "copy or download", "not a machine file", "update smolvm", "cut short"];
    for at in [0, 9, 17, 25, 40, 70, 90, 4000, whole.len() as u64 - 100] {
        refused(&home, &flip(at), &format!("byte {at}"), &ways_out);
    }
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    // Nothing of them is in the store: the good one runs.
    assert_eq!(home.ok(&["run", "./x.smolmachine", "--", "echo", "good"]), "good\n");
}

#[test]
fn newer_and_foreign_files() {
    let home = Home::new("soft");
    let mut newer = whole(&home);
    newer[8] = 2;
    refused(
        &home,
        &newer,
        "format 2",
        &["made by a newer smolvm (format 2; this one reads up to 1): update"],
    );
    refused(&home, b"", "empty", &["empty"]);
    let mut tar = vec![0; 10240];
    tar[..4].copy_from_slice(b"root");
    tar[257..265].copy_from_slice(b"ustar\x0000");
    refused(&home, &tar, "tar", &["a tar archive"]);
    refused(&home, b"QFI\xfb\0\0\0\x03 and so on", "qcow2", &["qcow2"]);
    let pack = [vec![7; 5000], b"SMOLPACK".to_vec(), vec![0; 56]].concat();
    refused(&home, &pack, "pack", &["another program called smolvm"]);
    refused(&home, b"name = \"x\"\n[run]\ncommand = \"true\"\n", "definition", &["smolvm build"]);
}

#[test]
fn a_running_machine_does_not_notice_what_happens_to_its_file() {
    let home = Home::new("soft");
    let whole = whole(&home);
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    // Programs and pages that were not touched yet come from the store's copy.
    let check = |what: &str| {
        let sum = home.ok(&["exec", "m", "sh", "-c", "cat /bin/busybox | md5sum; echo fine"]);
        assert!(sum.contains("fine"), "{what}: {sum}");
        sum
    };
    let first = check("untouched");
    fs::write(home.path("x.smolmachine"), vec![0xff; whole.len()]).unwrap();
    assert_eq!(check("overwritten"), first);
    fs::OpenOptions::new().write(true).open(home.path("x.smolmachine")).unwrap().set_len(5000).unwrap();
    assert_eq!(check("truncated"), first);
    fs::remove_file(home.path("x.smolmachine")).unwrap();
    assert_eq!(check("deleted"), first);
    // Also over a freeze, and into a snapshot of its own.
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    assert_eq!(check("frozen and started"), first);
    home.ok(&["snapshot", "m", "-o", "again.smolmachine"]);
    home.ok(&["verify", "again.smolmachine"]);
    home.ok(&["rm", "-f", "m"]);
}

/// Numbers of a sequence that is the same in every run (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

/// Places of each class of bytes: header, index, each section, and what pads the last one.
fn classes(path: &Path) -> Vec<(usize, usize)> {
    let bytes = fs::read(path).unwrap();
    let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let file = MachineFile::open_path(path).unwrap();
    let sections = file.sections().iter().map(|section| (section.offset as usize, section.len as usize));
    let last = sections.clone().map(|(at, len)| at + len).filter(|end| *end < field(16)).max();
    let padding = last.map(|end| (end, field(16) - end)).filter(|(_, len)| *len > 0);
    [(0, 4096), (field(16), field(24))]
        .into_iter()
        .chain(sections.filter(|(_, len)| *len > 0))
        .chain(padding)
        .collect()
}

/// One fault: flipped bits of one class, another length, two sections that change places, a stretch of zeros.
fn fault(good: &[u8], classes: &[(usize, usize)], numbers: &mut Numbers) -> Vec<u8> {
    let mut bad = good.to_vec();
    let (start, len) = classes[numbers.below(classes.len())];
    match numbers.below(5) {
        0 | 1 => (0..=numbers.below(4)).for_each(|_| {
            bad[start + numbers.below(len)] ^= 1 << numbers.below(8);
        }),
        2 => bad.truncate(start + numbers.below(len)),
        3 => bad.extend((0..=numbers.below(70_000)).map(|n| (n * 31) as u8)),
        _ => {
            let (other, other_len) = classes[numbers.below(classes.len())];
            let len = len.min(other_len);
            let (one, two) = (good[start..start + len].to_vec(), good[other..other + len].to_vec());
            bad[other..other + len].copy_from_slice(&one);
            bad[start..start + len].copy_from_slice(&two);
        }
    }
    bad
}

/// The program with at most so many KiB of memory of its own.
fn within(home: &Home, kib: u64, words: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -d {kib}; exec \"$0\" {words}")]).arg(program());
    command.current_dir(home.path("")).env("SMOLVM_HOME", home.path("home")).env("SMOLVM_ENGINE", "soft");
    command.stdin(Stdio::null());
    command
}

#[test]
fn random_faults_are_refused_by_the_program_in_little_memory() {
    const MOST_KIB: u64 = 64 << 10;
    let home = Home::new("soft");
    let good = whole(&home);
    let classes = classes(&home.path("x.smolmachine"));
    let mut numbers = Numbers(0x5eed);
    let (count, mut done, mut times) = (rounds(40, 10_000), 0, Vec::<Duration>::new());
    while done < count {
        let bad = fault(&good, &classes, &mut numbers);
        if bad == good {
            continue;
        }
        fs::write(home.path("bad.smolmachine"), bad).unwrap();
        let run = done % 10 == 9;
        let words = if run { "run ./bad.smolmachine -- echo ran" } else { "verify bad.smolmachine" };
        let begun = Instant::now();
        let output = within(&home, MOST_KIB, words).output().unwrap();
        times.push(begun.elapsed());
        let said = text(&output.stderr);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(125), String::new()),
            "{done}: {said}"
        );
        assert!(said.contains("bad.smolmachine"), "{done}: {said}");
        done += 1;
    }
    times.sort_unstable();
    println!("{count} faults; refused in {:?}, at most {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    // Controls: the good one is taken within the limit, and the limit is one.
    let good = within(&home, MOST_KIB, "verify x.smolmachine").output().unwrap();
    assert!(good.status.success(), "{}", text(&good.stderr));
    let cramped = within(&home, 256, "verify x.smolmachine").output().unwrap();
    assert!(!cramped.status.success());
}
