//! `cargo xtask dist`: the release archive, reproducible from the same checkout, guest and toolchain.
//!
//! `smolvm-<version>-<machine>-linux.tar.gz` in the target directory: the binary (stripped), README,
//! LICENSE, the licences of everything inside it, and shell completions. gzip, because a clean Debian has
//! no zstd. Names are sorted; times, owners and modes fixed.
//!
//! Next: `licences.rs` (the texts that have to go with the binary), `check.rs` (the archive used on a clean
//! Debian).

mod check;
mod licences;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use flate2::{Compression, GzBuilder};

use crate::guest;
use crate::paths::Paths;
use crate::run;

/// The largest that the binary and the archive may be, in bytes.
const LIMIT: u64 = 25 << 20;

const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// What `cargo xtask dist` can be told.
#[derive(Args)]
pub struct Options {
    /// Pack this binary instead of building one (the archive is then as reproducible as it is)
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Use the archive on a clean Debian 12, as root and as an ordinary user (needs root and debootstrap)
    #[arg(long)]
    pub check: bool,
}

/// Builds the guest and the program, and packs the archive.
pub fn build(paths: &Paths, options: &Options) -> Result<()> {
    let built = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            guest::build(paths, &guest::Options::default())?;
            release_binary(paths)?
        }
    };
    let binary = stripped(paths, &built)?;
    let program = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    ensure!(program.len() as u64 <= LIMIT, "the binary has {} bytes; the limit is {LIMIT}", program.len());

    let version = env!("CARGO_PKG_VERSION");
    let stem = format!("smolvm-{version}-{}-linux", env::consts::ARCH);
    let mut files = vec![
        File::new("smolvm", 0o755, program),
        File::read(paths, "README.md", "README.md")?,
        File::read(paths, "LICENSE", "LICENSE")?,
        File::read(paths, "docs/licences.md", "licences/README.md")?,
    ];
    files.extend(
        licences::texts(paths)?
            .into_iter()
            .map(|(name, text)| File::new(&format!("licences/{name}"), 0o644, text.into_bytes())),
    );
    for shell in SHELLS {
        let text = run::output(Command::new(&binary).args(["completions", shell]))?;
        files.push(File::new(&format!("completions/smolvm.{shell}"), 0o644, text.into_bytes()));
    }
    let archive = pack(&stem, files)?;
    let to = paths.target.join(format!("{stem}.tar.gz"));
    fs::write(&to, &archive).with_context(|| format!("cannot write {}", to.display()))?;
    eprintln!(
        "dist: {} ({} KiB, blake3 {})",
        to.display(),
        archive.len() >> 10,
        blake3::hash(&archive).to_hex()
    );
    ensure!(archive.len() as u64 <= LIMIT, "the archive has {} bytes; the limit is {LIMIT}", archive.len());
    if options.check { check::check(paths, &to, &stem) } else { Ok(()) }
}

/// A position-independent program is relocated at each start, 25,000 words of it: as a bitmap (DT_RELR) they take 20 KiB to
/// read instead of 600 (docs/adr/0161). benches/startup links the same way.
const PACKED_RELOCATIONS: &str = "-Clink-arg=-Wl,-z,pack-relative-relocs";

/// Builds the program with nothing of this machine's paths in it, and static: it starts 0.4 ms sooner, and runs where
/// the C library is another one. (Only the program itself gets that flag, so that procedural macros can be built.)
fn release_binary(paths: &Paths) -> Result<PathBuf> {
    let target_dir = paths.target.join("dist");
    let home = licences::cargo_home()?;
    let flags = [
        format!("--remap-path-prefix={}=/smolvm", paths.root.display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
    ];
    let mut cargo = run::cargo(paths);
    cargo
        .args(["rustc", "--release", "--locked", "--package", "smolvm", "--bin", "smolvm", "--target-dir"])
        .arg(&target_dir)
        .args(["--", "-Ctarget-feature=+crt-static", PACKED_RELOCATIONS])
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("SMOLVM_GUEST_DIR", &paths.guest);
    run::status(&mut cargo).context("building smolvm")?;
    Ok(target_dir.join("release/smolvm"))
}

/// A copy without symbols.
fn stripped(paths: &Paths, built: &Path) -> Result<PathBuf> {
    let dir = paths.target.join("dist");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let to = dir.join("smolvm");
    run::status(Command::new("strip").arg("-o").arg(&to).arg(built))?;
    Ok(to)
}

/// One file of the archive.
struct File {
    name: String,
    mode: u32,
    bytes: Vec<u8>,
}

impl File {
    fn new(name: &str, mode: u32, bytes: Vec<u8>) -> File {
        File { name: name.to_string(), mode, bytes }
    }

    fn read(paths: &Paths, from: impl AsRef<Path>, name: &str) -> Result<File> {
        let from = paths.in_root(from);
        let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        Ok(File::new(name, 0o644, bytes))
    }
}

fn pack(stem: &str, mut files: Vec<File>) -> Result<Vec<u8>> {
    files.sort_by(|one, other| one.name.cmp(&other.name));
    // No time and no operating system in the header: nothing of the building machine.
    let gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(file.mode);
        header.set_size(file.bytes.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, format!("{stem}/{}", file.name), file.bytes.as_slice())
            .with_context(|| format!("cannot pack {}", file.name))?;
    }
    let gzip = tar.into_inner().context("cannot end the archive")?;
    gzip.finish().context("cannot compress the archive")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_archive_is_sorted_and_the_same_twice() {
        let files =
            || vec![File::new("smolvm", 0o755, vec![1; 5000]), File::new("README.md", 0o644, b"hi".to_vec())];
        let archive = pack("stem", files()).unwrap();
        assert_eq!(archive, pack("stem", files()).unwrap());
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive.as_slice()));
        let found: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                let header = entry.header();
                let path = entry.path().unwrap().display().to_string();
                (path, header.mode().unwrap(), header.mtime().unwrap(), header.uid().unwrap(), bytes.len())
            })
            .collect();
        let expected = [("stem/README.md", 0o644, 2), ("stem/smolvm", 0o755, 5000)];
        assert_eq!(found, expected.map(|(name, mode, size)| (name.to_string(), mode, 0, 0, size)));
    }
}
