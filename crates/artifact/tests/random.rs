//! Ten thousand random faults in a file: each is refused, and none makes the reader take memory.

mod common;

use artifact::MachineFile;
use common::{check, memfile, noise, small_bytes};

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

/// Sections of a file: offset and length of each that has bytes, from its index.
fn sections(bytes: &[u8]) -> Vec<(usize, usize)> {
    let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (index, len) = (field(16), field(24));
    let entries = (index + 128..index + len).step_by(128).map(|entry| (field(entry + 16), field(entry + 24)));
    entries.filter(|(_, len)| *len > 0).collect()
}

fn swap(bytes: &mut [u8], a: usize, b: usize, len: usize) {
    let (one, other) = (bytes[a..a + len].to_vec(), bytes[b..b + len].to_vec());
    bytes[a..a + len].copy_from_slice(&other);
    bytes[b..b + len].copy_from_slice(&one);
}

/// One fault: flipped bits, another length, sections or pages that change places, a stretch overwritten.
fn fault(good: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = good.to_vec();
    match numbers.below(7) {
        0 => bytes.truncate(numbers.below(good.len())),
        1 => {
            let more = 1 + numbers.below(9000);
            let seed = numbers.below(1 << 30) as u64;
            bytes.extend(if seed.is_multiple_of(2) { vec![0; more] } else { noise(seed, more) });
        }
        2 => {
            let sections = sections(good);
            let (a, b) = (sections[numbers.below(sections.len())], sections[numbers.below(sections.len())]);
            swap(&mut bytes, a.0, b.0, a.1.min(b.1));
        }
        3 => {
            let pages = good.len() / 4096;
            let (a, b) = (numbers.below(pages) * 4096, numbers.below(pages) * 4096);
            swap(&mut bytes, a, b, 4096);
        }
        4 => {
            let len = 1 + numbers.below(300);
            let at = numbers.below(good.len() - len);
            bytes[at..at + len].copy_from_slice(&noise(numbers.below(1 << 30) as u64, len));
        }
        5 => {
            // A piece is lost: what follows moves up.
            let len = 1 + numbers.below(5000);
            let at = numbers.below(good.len() - len);
            bytes.drain(at..at + len);
        }
        _ => {
            for _ in 0..=numbers.below(8) {
                let at = numbers.below(good.len());
                bytes[at] ^= 1 << numbers.below(8);
            }
        }
    }
    bytes
}

/// The most memory that this process had, KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn ten_thousand_faults_are_refused_in_little_memory() {
    let good = small_bytes();
    check(&memfile(&good)).unwrap();
    let mut numbers = Numbers(0x5eed);
    let (mut refused, mut unchanged, mut opened) = (0, 0, 0);
    let before = peak();
    while refused < 10_000 {
        let bad = fault(&good, &mut numbers);
        if bad == good {
            unchanged += 1;
            continue;
        }
        let said = check(&memfile(&bad));
        assert!(said.is_err(), "fault {refused} of seed 0x5eed was accepted");
        refused += 1;
        opened += u32::from(MachineFile::open(memfile(&bad), "bad").is_ok());
    }
    // Controls: what is as it was is accepted; a reader that looks at header and index alone takes many of the others.
    check(&memfile(&good)).unwrap();
    assert!(unchanged < 1000 && opened > 1000, "{unchanged} faults that were none, {opened} seen late");
    // A reader takes 132 KiB and a piece of 256 KiB for each thread (ADR 0020, 0022).
    let grown = peak() - before;
    assert!(grown < 8 << 10, "{grown} KiB more than before");
    let much = vec![1u8; 32 << 20];
    assert!(peak() - before > 16 << 10 && much.len() > 1, "control: memory that is taken is seen");
}
