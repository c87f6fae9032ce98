//! Empty ext4 file systems: `blank.ext4`, the writable layer of every new instance, and `volume.ext4`, what a
//! new volume begins as.
//!
//! The first has 16 GiB of which 39 blocks are not zero; the second is one block group, 128 MiB, which the guest's
//! kernel grows to the volume's size when it is mounted (`resize_inode`, with room for 4 TiB: the group table need
//! not move). Both are kept in the compact form that `crates/assets` documents. Chosen so that mounting reads little and writes little, since what a mount writes is an instance's
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

/// One of them.
struct Template {
    /// `NAME.ext4`, and `NAME_ext4` in the build information.
    name: &'static str,
    /// Bytes.
    size: u64,
    label: &'static str,
    /// Beside the features of all.
    features: &'static str,
    /// Extended options beside those of all.
    extended: &'static str,
    uuid: &'static str,
}

const TEMPLATES: [Template; 2] = [
    Template {
        name: "blank",
        size: 16 << 30,
        label: "smolvm-data",
        features: "",
        extended: "",
        uuid: "736d6f6c-766d-4000-8000-626c616e6b21",
    },
    Template {
        name: "volume",
        size: 128 << 20,
        label: "smolvm-volume",
        features: ",resize_inode",
        extended: ",resize=1073741824",
        uuid: "736d6f6c-766d-4000-8000-766f6c756d65",
    },
];

const BLOCK: usize = 4096;

/// 2026-01-01T00:00:00Z, the time that mke2fs is told it is.
const TIME: &str = "1767225600";

/// In place of the system's mke2fs.conf, which differs between hosts. (It wants some feature named there.)
const CONFIG: &str = "[defaults]\n[fs_types]\n\text4 = {\n\t\tfeatures = has_journal\n\t}\n";

const ARGUMENTS: &[&str] =
    &["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=16", "-i", "16384"];

const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,\
     uninit_bg,dir_nlink,extra_isize";

const EXTENDED: &str = "hash_seed=736d6f6c-766d-4000-8000-626c616e6b22,lazy_itable_init=0,lazy_journal_init=1,\
     assume_storage_prezeroed=1,nodiscard,root_owner=0:0";

impl Template {
    fn arguments(&self) -> Vec<String> {
        let own = [
            ("-L", self.label.to_owned()),
            ("-U", self.uuid.to_owned()),
            ("-O", format!("{FEATURES}{}", self.features)),
            ("-E", format!("{EXTENDED}{}", self.extended)),
        ];
        let own = own.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        ARGUMENTS.iter().map(|word| (*word).to_owned()).chain(own).collect()
    }
}

/// Publishes both.
pub fn build(paths: &Paths, info: &mut BuildInfo) -> Result<()> {
    let mke2fs =
        run::find_program("mke2fs").context("mke2fs is missing: run `apt-get install e2fsprogs` as root")?;
    let version = run::raw_output(Command::new(&mke2fs).arg("-V"))?.stderr; // it writes there
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_string();
    for template in &TEMPLATES {
        make(template, &mke2fs, &version, paths, info)?;
    }
    info.set("mke2fs", version);
    Ok(())
}

fn make(
    template: &Template,
    mke2fs: &Path,
    version: &str,
    paths: &Paths,
    info: &mut BuildInfo,
) -> Result<()> {
    let arguments = template.arguments();
    let key = cache::Inputs::default()
        .add("size", template.size.to_le_bytes())
        .add("time", TIME)
        .add("config", CONFIG)
        .add("arguments", arguments.join("\0"))
        .add("mke2fs", version)
        .key();
    let file = format!("{}.ext4", template.name);
    let dir = cache::get_or_make(&paths.cache, template.name, &key, |dir| {
        let raw = dir.join("raw");
        let mut command = Command::new(mke2fs);
        let settings = dir.join("mke2fs.conf");
        fs::write(&settings, CONFIG).context("cannot write mke2fs.conf")?;
        command.env("E2FSPROGS_FAKE_TIME", TIME).env("MKE2FS_CONFIG", &settings).args(&arguments);
        let size = format!("{}k", template.size >> 10);
        run::logged(command.arg(&raw).arg(size), &dir.join("mke2fs.log"))?;
        let compact = compact(&raw, template.size)?;
        fs::write(dir.join(&file), compact).with_context(|| format!("cannot write {file}"))?;
        fs::remove_file(&raw).context("cannot remove the raw image")
    })?;
    let made = cache::read(&dir.join(&file))?;
    cache::publish(&made, &paths.guest.join(&file))?;
    info.set_part(&format!("{}_ext4", template.name), &made);
    Ok(())
}

/// Reads a sparse image into the compact form. It is read through, holes too: a few seconds, once, and
/// the same result on a file system that cannot tell its holes.
fn compact(raw: &Path, wanted: u64) -> Result<Vec<u8>> {
    let mut file = File::open(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let size = file.metadata().context("cannot see the raw image's size")?.len();
    ensure!(size == wanted, "mke2fs made an image of {size} bytes, not {wanted}");
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
