//! What a run needs before it can begin: QEMU, the static program, the root image. Each is kept and made
//! anew only when its inputs changed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use anyhow::{Context, Result, bail, ensure};
use artifact::{MachineFile, SectionKind};

use crate::options::Place;
use crate::{cpio, host};

/// Everything that contenders are made from.
pub struct Setup {
    pub work: PathBuf,
    /// Uncompressed EROFS.
    pub root: PathBuf,
    /// vmlinux.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The static program by itself.
    pub guest: PathBuf,
    /// MiB.
    pub memory: u64,
    pub smolvm: PathBuf,
    pub extra: Extra,
}

/// What a machine has besides its disks.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Ours: a network that leads to the host's loopback.
    pub network: bool,
    /// Ours: a folder of the host.
    pub folder: Option<PathBuf>,
    /// QEMU's: words of its command line for the device on `virtio-mmio-bus.3`.
    pub qemu: Vec<String>,
}

/// Makes what is missing.
pub fn setup(place: &Place) -> Result<Setup> {
    let mut setup = setup_program(place)?;
    setup.root = root(&setup.work, &setup.smolvm, &host::checkout().join("benches/engine/root"))?;
    Ok(setup)
}

/// Everything but the root of the workloads.
pub fn setup_program(place: &Place) -> Result<Setup> {
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| host::checkout().join("target"), PathBuf::from);
    let work = place.work.clone().unwrap_or_else(|| target.join("engine"));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let guest = guest(&work)?;
    let initramfs = work.join("initramfs.cpio");
    fs::write(&initramfs, cpio::initramfs(&fs::read(&guest)?))?;
    let kernel = match &place.kernel {
        Some(path) => path.clone(),
        None => {
            let path = work.join("vmlinux");
            fs::write(&path, assets::kernel())?;
            path
        }
    };
    let smolvm = smolvm(place)?;
    let (root, memory, extra) = (work.join("root.erofs"), place.memory, Extra::default());
    Ok(Setup { root, work, kernel, initramfs, guest, memory, smolvm, extra })
}

/// QEMU, installed from Debian's packages where it is missing and we may; its version.
pub fn qemu() -> Result<String> {
    const PROGRAM: &str = "qemu-system-x86_64";
    const PACKAGE: &str = "qemu-system-x86";
    if host::which(PROGRAM).is_none() {
        if !rustix::process::geteuid().is_root() {
            bail!("{PROGRAM} is not there; install it (apt-get install {PACKAGE}), or run this as root");
        }
        eprintln!("installing {PACKAGE}");
        let mut apt = Command::new("apt-get");
        host::run(apt.args(["install", "-y", "--no-install-recommends", PACKAGE]))?;
    }
    let said = host::read(Command::new(PROGRAM).arg("--version"))?;
    Ok(said.lines().next().unwrap_or_default().replace("QEMU emulator version ", "QEMU "))
}

/// Builds the static program.
fn guest(work: &Path) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let dir = work.join("guest");
    let flags = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static", "-Ctarget-cpu=x86-64-v2"];
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--release", "--package", "engine_guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(&dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .current_dir(host::checkout());
    host::run(&mut command).context("building benches/engine_guest")?;
    let path = dir.join(TARGET).join("release/engine_guest");
    ensure!(path.is_file(), "{} was not built", path.display());
    Ok(path)
}

/// The program under test, of the same profile as this one.
fn smolvm(place: &Place) -> Result<PathBuf> {
    if let Some(path) = &place.smolvm {
        return Ok(std::path::absolute(path)?);
    }
    let ours = env::current_exe()?;
    let dir = ours.parent().context("this program is nowhere")?;
    let path = dir.join("smolvm");
    if !path.is_file() {
        eprintln!("building smolvm");
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["build", "--quiet", "--package", "smolvm"]).current_dir(host::checkout());
        if dir.ends_with("release") {
            command.arg("--release");
        }
        host::run(&mut command).context("building smolvm")?;
    }
    Ok(path)
}

/// Builds the machine file of the Smolfile in `source` and takes its root image out.
///
/// # Errors
/// It cannot be built: no packages, no room.
pub fn root(work: &Path, smolvm: &Path, source: &Path) -> Result<PathBuf> {
    let image = work.join("root.erofs");
    let key_path = work.join("root.key");
    let key = key(source)?;
    if image.is_file() && fs::read_to_string(&key_path).is_ok_and(|old| old == key) {
        return Ok(image);
    }
    eprintln!("building the root image (once)");
    // Beside the definition a build writes its lock: not into the checkout.
    let copy = work.join("root");
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir_all(copy.join("bench"))?;
    for path in inputs(source)? {
        fs::copy(&path, copy.join(path.strip_prefix(source)?))?;
    }
    let file = work.join("root.smolmachine");
    let mut command = Command::new(smolvm);
    command.args(["build", "--engine", "soft", "-f"]).arg(copy.join("Smolfile")).arg("-o").arg(&file);
    host::run(command.env("SMOLVM_HOME", work.join("home")))?;
    extract(&file, &image)?;
    fs::write(key_path, key)?;
    Ok(image)
}

fn inputs(source: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = vec![source.join("Smolfile")];
    if let Ok(entries) = fs::read_dir(source.join("bench")) {
        for entry in entries {
            paths.push(entry?.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn key(source: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in inputs(source)? {
        hasher.update(path.strip_prefix(source)?.as_os_str().as_encoded_bytes());
        hasher.update(&fs::read(&path)?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Copies the root image out of a machine file.
pub fn extract(file: &Path, image: &Path) -> Result<()> {
    let file = MachineFile::open_path(file)?;
    let section = file.require(SectionKind::RootImage, 0)?;
    let mut out = File::create(image)?;
    let mut part = Part { file: file.file(), at: section.offset, left: section.len };
    io::copy(&mut part, &mut out)?;
    Ok(())
}

struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl io::Read for Part<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let want = to.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut to[..want], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
