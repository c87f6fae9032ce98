//! Compresses the guest's larger parts (`cargo xtask guest` made them) into OUT_DIR and writes the table that
//! `src/parts.rs` includes. Compressed copies are kept beside the parts, named by content, so that only
//! the first build after a change pays for level 19, in whatever target directory.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const LEVEL: i32 = 19;

/// Rust name, file name.
const PARTS: [(&str, &str); 3] =
    [("KERNEL", "vmlinux"), ("INITRAMFS", "initramfs.cpio"), ("BUSYBOX", "busybox")];

/// Embedded as they are: every start needs the first, and 160 KiB are not worth the time of unpacking.
const BLANKS: [(&str, &str); 2] = [("BLANK_EXT4", "blank.ext4"), ("VOLUME_EXT4", "volume.ext4")];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SMOLVM_GUEST_DIR");
    if let Err(error) = embed() {
        println!("cargo::error={error}; run: cargo xtask guest");
    }
}

fn embed() -> Result<(), Box<dyn Error>> {
    let dir = guest_dir()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut table = String::new();
    for (name, file) in PARTS {
        let bytes = read(&dir.join(file))?;
        let size = bytes.len();
        let to = out.join(format!("{file}.zst"));
        fs::write(&to, compressed(&bytes, &dir)?)?;
        let path = to.to_str().ok_or("the target directory's path is not UTF-8")?;
        writeln!(table, "pub const {name}: Part = Part {{ size: {size}, zstd: include_bytes!({path:?}) }};")?;
    }
    for (name, file) in BLANKS {
        let to = out.join(file);
        fs::write(&to, read(&dir.join(file))?)?;
        let path = to.to_str().ok_or("the target directory's path is not UTF-8")?;
        writeln!(table, "pub static {name}: &[u8] = include_bytes!({path:?});")?;
    }
    let info = String::from_utf8(read(&dir.join("build-info.toml"))?)?;
    writeln!(table, "pub const BUILD_INFO: &[(&str, &str)] = &[")?;
    for line in info.lines().filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once(" = ").ok_or_else(|| format!("build-info.toml: {line:?}"))?;
        writeln!(table, "    ({key:?}, {:?}),", value.trim_matches('"'))?;
    }
    writeln!(table, "];")?;
    fs::write(out.join("parts.rs"), table)?;
    Ok(())
}

/// `SMOLVM_GUEST_DIR`, else `target/guest` in the workspace.
fn guest_dir() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(dir) = env::var_os("SMOLVM_GUEST_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest.ancestors().nth(2).ok_or("this crate is not in <workspace>/crates")?;
    Ok(root.join("target/guest"))
}

fn read(path: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    println!("cargo:rerun-if-changed={}", path.display());
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

fn compressed(bytes: &[u8], dir: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let store = dir.join("compressed");
    let kept = store.join(format!("{}-{LEVEL}.zst", blake3::hash(bytes).to_hex()));
    if let Ok(found) = fs::read(&kept)
        && zstd::bulk::decompress(&found, bytes.len()).is_ok_and(|back| back == bytes)
    {
        return Ok(found);
    }
    let made = zstd::bulk::compress(bytes, LEVEL)?;
    // A store that cannot be written costs time at the next build, nothing else.
    let temporary = store.join(format!(".{}", std::process::id()));
    if fs::create_dir_all(&store).is_ok() && fs::write(&temporary, &made).is_ok() {
        let _ = fs::rename(&temporary, &kept);
    }
    Ok(made)
}
