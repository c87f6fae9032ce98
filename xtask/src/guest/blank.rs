//! `blank.ext4`: an empty ext4 file system, the writable layer of every new instance.
//!
//! 16 GiB of which 39 blocks are not zero, kept in the compact form that `crates/assets` documents.
//! Chosen so that mounting reads little and writes little, since what a mount writes is an instance's
//! first disk cost:
//! - no metadata checksums: nothing to compute on an interpreted CPU, and the machine file covers the
//!   disk with hashes of its own; `uninit_bg` still lets the kernel skip the bitmaps of unused groups;
//! - inode tables are marked as zeroed (they are: the image is new), so the kernel starts no thread
//!   that writes zeros over them;
//! - 128 groups with 32-byte descriptors (no `64bit`): the group table is one block;
//! - a 16 MiB journal: a killed instance's disk stays consistent, and a snapshot carries little of it;
//! - no reserved blocks, fixed UUID, hash seed and time: the same bytes from every build.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build_info::BuildInfo;
use super::cache;
use crate::paths::Paths;
use crate::run;

const SIZE: u64 = 16 << 30;
const BLOCK: usize = 4096;

/// 2026-01-01T00:00:00Z, the time that mke2fs is told it is.
const TIME: &str = "1767225600";

/// In place of the system's mke2fs.conf, which differs between hosts. (It wants some feature named there.)
const CONFIG: &str = "[defaults]\n[fs_types]\n\text4 = {\n\t\tfeatures = has_journal\n\t}\n";

const ARGUMENTS: &[&str] = &[
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-I",
    "256",
    "-m",
    "0",
    "-J",
    "size=16",
    "-L",
    "smolvm-data",
    "-U",
    "736d6f6c-766d-4000-8000-626c616e6b21",
    "-O",
    "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,\
     uninit_bg,dir_nlink,extra_isize",
    "-E",
    "hash_seed=736d6f6c-766d-4000-8000-626c616e6b22,lazy_itable_init=0,lazy_journal_init=1,\
     assume_storage_prezeroed=1,nodiscard,root_owner=0:0",
];

/// Publishes `blank.ext4`.
pub fn build(paths: &Paths, info: &mut BuildInfo) -> Result<()> {
    let mke2fs =
        run::find_program("mke2fs").context("mke2fs is missing: run `apt-get install e2fsprogs` as root")?;
    let version = run::raw_output(Command::new(&mke2fs).arg("-V"))?.stderr; // it writes there
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_string();
    let key = cache::Inputs::default()
        .add("size", SIZE.to_le_bytes())
        .add("time", TIME)
        .add("config", CONFIG)
        .add("arguments", ARGUMENTS.join("\0"))
        .add("mke2fs", &version)
        .key();
    let dir = cache::get_or_make(&paths.cache, "blank", &key, |dir| {
        let raw = dir.join("raw");
        let mut command = Command::new(&mke2fs);
        let settings = dir.join("mke2fs.conf");
        fs::write(&settings, CONFIG).context("cannot write mke2fs.conf")?;
        command.env("E2FSPROGS_FAKE_TIME", TIME).env("MKE2FS_CONFIG", &settings).args(ARGUMENTS);
        let size = format!("{}k", SIZE >> 10);
        run::logged(command.arg(&raw).arg(size), &dir.join("mke2fs.log"))?;
        let compact = compact(&raw)?;
        fs::write(dir.join("blank.ext4"), compact).context("cannot write blank.ext4")?;
        fs::remove_file(&raw).context("cannot remove the raw image")
    })?;
    let blank = cache::read(&dir.join("blank.ext4"))?;
    cache::publish(&blank, &paths.guest.join("blank.ext4"))?;
    info.set_part("blank_ext4", &blank);
    info.set("mke2fs", version);
    Ok(())
}

/// Reads a sparse image into the compact form. It is read through, holes too: a few seconds, once, and
/// the same result on a file system that cannot tell its holes.
fn compact(raw: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let size = file.metadata().context("cannot see the raw image's size")?.len();
    ensure!(size == SIZE, "mke2fs made an image of {size} bytes, not {SIZE}");
    let mut blocks: Vec<u8> = Vec::new();
    let mut count = 0u32;
    let mut step = vec![0; 256 * BLOCK];
    for first in (0..size / BLOCK as u64).step_by(256) {
        file.read_exact(&mut step).context("cannot read the raw image")?;
        for (index, block) in (first..).zip(step.chunks_exact(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                blocks.extend(index.to_le_bytes());
                blocks.extend(block);
                count += 1;
            }
        }
    }
    ensure!((1..=256).contains(&count), "{count} blocks of a blank file system are not zero");
    Ok([&size.to_le_bytes()[..], &count.to_le_bytes(), &blocks].concat())
}
