//! A definition's own kernel: read, unpacked to the ELF file that a machine is entered at, and looked at for what a
//! machine needs of it.
//!
//! Problem: a kernel that lacks one option boots to nothing, without a word. Strategy: what can be known of it before
//! it runs is: its headers (`unpack.rs`), and its configuration where that is in it or beside it (`config.rs`), against the
//! list of what smolvm and its agent use (`needs.rs`). Next: `job.rs` packs it into the base.

mod config;
mod needs;
mod unpack;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use artifact::hash::Digest;
use serde::{Deserialize, Serialize};
use spec::{KernelDef, MachineSpec};

use config::Config;
use unpack::MOST;

pub use unpack::KernelImage;

/// What stands in `Smolfile.lock` of a kernel that is not smolvm's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelLock {
    /// As `uname -r` prints it.
    pub release: String,
    /// BLAKE3 of the unpacked image.
    pub blake3: String,
}

/// A kernel that a machine can be booted with, as far as can be told before.
#[derive(Clone)]
pub struct Kernel {
    /// ELF64.
    vmlinux: Vec<u8>,
    pub release: String,
    /// How it came: `vmlinux`, `bzImage`.
    pub form: &'static str,
    /// What it cannot do, or what is not known of it; whole sentences.
    pub notes: Vec<String>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("release", &self.release).field("form", &self.form).finish()
    }
}

/// What is wrong with it, and which key of `[kernel]` that is about.
pub(crate) struct Wrong {
    pub(crate) key: &'static str,
    pub(crate) what: String,
}

impl Kernel {
    /// Reads the kernel that a definition names; paths start from `dir`.
    pub(crate) fn read(def: &KernelDef, spec: &MachineSpec, dir: &Path) -> Result<Self, Wrong> {
        let path = dir.join(&def.image);
        let wrong = |what: String| Wrong {
            key: "image",
            what: format!("[kernel] image names {}: {what}", path.display()),
        };
        let bytes = read_file(&path).map_err(wrong)?;
        let image = KernelImage::unpack(bytes).map_err(wrong)?;
        let place = image.place().map_err(|e| wrong(e.to_string()))?;
        if place.end > spec.memory {
            let need = place.end.div_ceil(1 << 20);
            return Err(wrong(format!("it lies up to {need} MiB of memory; raise `memory`")));
        }
        let release = image.release();
        let release = release
            .ok_or_else(|| wrong("it is no Linux kernel: there is no `Linux version` in it".into()))?;
        let KernelImage { vmlinux, form, .. } = image;
        let mut kernel = Self { vmlinux, release, form, notes: Vec::new() };
        match kernel.config(def, dir, &path)? {
            Some(config) => kernel.measure(&config, spec)?,
            None => kernel.notes.push(format!(
                "the configuration of {} is neither in it nor beside it: whether it has what a machine needs shows \
                 when it boots; name its .config as [kernel] config",
                path.display()
            )),
        }
        Ok(kernel)
    }

    /// Its configuration: the one that is named, the one in it, or one beside it that is of its release.
    fn config(&self, def: &KernelDef, dir: &Path, image: &Path) -> Result<Option<Config>, Wrong> {
        if let Some(named) = &def.config {
            let path = dir.join(named);
            let wrong = |what: String| Wrong {
                key: "config",
                what: format!("[kernel] config names {}: {what}", path.display()),
            };
            let config = Config::parse(&read_file(&path).map_err(wrong)?);
            let config = config.ok_or_else(|| wrong("it is no kernel's configuration".into()))?;
            if !config.is_of(&self.release) {
                let (other, release) = (&config.version, &self.release);
                return Err(wrong(format!("it is that of Linux {other}, and the image is {release}")));
            }
            return Ok(Some(config));
        }
        if let Some(config) = Config::embedded(&self.vmlinux) {
            return Ok(Some(config));
        }
        let beside = |name: &str| Config::parse(&read_file(&image.with_file_name(name)).ok()?);
        let names = [format!("config-{}", self.release), "config".to_owned(), ".config".to_owned()];
        Ok(names.iter().find_map(|name| beside(name).filter(|config| config.is_of(&self.release))))
    }

    fn measure(&mut self, config: &Config, spec: &MachineSpec) -> Result<(), Wrong> {
        let found = needs::missing(config, spec);
        if !found.required.is_empty() {
            let mut what = format!("[kernel] Linux {} lacks what a machine needs:", self.release);
            found.required.iter().for_each(|line| what.push_str(&format!("\n  {line}")));
            what.push_str(
                "\nset these and build it anew (examples/guest/make.sh does, from Debian's source)",
            );
            if found.has_modules {
                what.push_str(
                    "; modules lie in the root, which the kernel has to find without them: a distribution's kernel cannot \
                     be used as it is. Without [kernel] the machine has smolvm's own",
                );
            }
            return Err(Wrong { key: "image", what });
        }
        self.notes.extend(found.advised);
        Ok(())
    }

    /// What the lock says of it.
    pub(crate) fn lock(&self) -> KernelLock {
        KernelLock { release: self.release.clone(), blake3: Digest::of(&self.vmlinux).to_string() }
    }

    /// One zstd frame, as machine files keep kernels.
    pub(crate) fn packed(&self) -> std::io::Result<Vec<u8>> {
        const LEVEL: i32 = 12;
        zstd::bulk::compress(&self.vmlinux, LEVEL)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            "it is not there; paths start from the Smolfile's directory".to_owned()
        }
        _ => e.to_string(),
    })?;
    let kind = file.metadata().map_err(|e| e.to_string())?;
    if !kind.is_file() {
        return Err("it is no file".into());
    }
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    match bytes.len() as u64 > MOST {
        true => Err(format!("it is larger than {} MiB, which no kernel is", MOST >> 20)),
        false => Ok(bytes),
    }
}

/// What follows the first `needle` of which `fits` says yes to that.
fn find<'a>(haystack: &'a [u8], needle: &[u8], fits: impl Fn(&[u8]) -> bool) -> Option<&'a [u8]> {
    let found = haystack.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
    let mut rests = found.filter_map(|(at, _)| haystack.get(at + needle.len()..));
    rests.find(|rest| fits(rest))
}

/// What `[kernel]` takes from the host, with the keys that say so.
pub(crate) fn host_paths(def: &KernelDef) -> Vec<(&'static str, PathBuf)> {
    let config = def.config.iter().map(|config| ("config", config.into()));
    std::iter::once(("image", PathBuf::from(&def.image))).chain(config).collect()
}
