//! What is in a machine file, as a VMM uses it: the specification, boot media, disks.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use artifact::{MachineFile, SectionKind};
use disk::{DeltaMap, Disk, FileDisk, Overlay, SparseDisk, private_file};
use machine::DISK_MAP_VERSION;
use spec::{CpuProfile, Hooks, MachineSpec, SPEC_VERSION};
use store::Pin;

use crate::error::{Error, io_error};

/// Most bytes of a specification.
const SPEC_CAP: u64 = 1 << 20;
/// Most bytes of a kernel or initramfs.
const BOOT_CAP: u64 = 256 << 20;
/// Most bytes of a disk map.
const MAP_CAP: u64 = 64 << 20;

/// A machine file of the store, in use.
pub struct Media {
    /// Keeps the object from being pruned.
    pub pin: Pin,
    pub file: MachineFile,
    pub spec: MachineSpec,
}

/// The built-in machine: busybox, no service.
pub fn built_in_spec() -> MachineSpec {
    MachineSpec {
        version: SPEC_VERSION,
        name: "minimal".into(),
        vcpus: 1,
        memory: 256 << 20,
        cpu: CpuProfile::Portable,
        command_line: String::new(),
        service: None,
        ready: None,
        hooks: Hooks::default(),
        env: Vec::new(),
    }
}

impl Media {
    /// Reads the specification of an object.
    ///
    /// # Errors
    /// The file's; a specification of another version.
    pub fn open(pin: Pin) -> Result<Self, Error> {
        let file = pin.open()?;
        let spec = read_spec(&file)?;
        Ok(Self { pin, file, spec })
    }

    fn read(&self, kind: SectionKind) -> Result<Vec<u8>, Error> {
        Ok(self.file.read_required(kind, 0, BOOT_CAP)?)
    }

    /// `vmlinux`.
    ///
    /// # Errors
    /// The file's.
    pub fn kernel(&self) -> Result<Vec<u8>, Error> {
        self.read(SectionKind::Kernel)
    }

    /// # Errors
    /// The file's.
    pub fn initramfs(&self) -> Result<Vec<u8>, Error> {
        self.read(SectionKind::Initramfs)
    }

    /// The root image: a section of the file, shared by all instances through the page cache.
    ///
    /// # Errors
    /// The file's.
    pub fn root(&self) -> Result<Arc<dyn Disk>, Error> {
        let section = self.file.require(SectionKind::RootImage, 0)?;
        let disk = section_disk(&self.file, section.offset, section.len)?;
        Ok(Arc::new(disk))
    }
}

/// The specification in a file.
///
/// # Errors
/// The file's; a specification that this smolvm does not read.
pub fn read_spec(file: &MachineFile) -> Result<MachineSpec, Error> {
    let section = file.require(SectionKind::Spec, 0)?;
    let refused = |why: String| Error::Refused(format!("{}: its specification {why}", file.path().display()));
    if section.version != SPEC_VERSION {
        return Err(refused(format!("has version {}; this smolvm reads {SPEC_VERSION}", section.version)));
    }
    let bytes = file.read_section(section, SPEC_CAP)?;
    let spec: MachineSpec = serde_json::from_slice(&bytes)
        .map_err(|e| refused(format!("cannot be read: {e}; rebuild the file")))?;
    if !(1..=16).contains(&spec.vcpus)
        || spec.memory == 0
        || spec.memory > 1 << 40
        || !spec.memory.is_multiple_of(4096)
    {
        return Err(refused(format!("asks for {} vCPUs and {} bytes of memory", spec.vcpus, spec.memory)));
    }
    Ok(spec)
}

fn section_disk(file: &MachineFile, offset: u64, len: u64) -> Result<FileDisk, Error> {
    let handle = file.file().try_clone().map_err(io_error("open again", file.path()))?;
    FileDisk::section(Arc::new(handle), offset, len).map_err(io_error("use a section of", file.path()))
}

/// The writable disk: what `saved` says was changed of a blank file system, and a private layer
/// in `dir` on top, gone when the process is.
///
/// # Errors
/// The file's; a disk map that does not fit; the host's.
pub(crate) fn scratch(saved: Option<&MachineFile>, dir: &Path) -> Result<Arc<Overlay>, Error> {
    let blank = SparseDisk::new(assets::blank_ext4_list())
        .map_err(|e| Error::Refused(format!("the built-in blank disk is damaged: {e}")))?;
    let private: File = private_file(dir).map_err(io_error("make a private disk file in", dir))?;
    let base: Arc<dyn Disk> = Arc::new(blank);
    let overlay = match saved.and_then(|f| f.section(SectionKind::DiskDeltaMap).map(|s| (f, s))) {
        None => Overlay::new(base, private),
        Some((file, section)) => {
            let bytes = file.read_section(section, MAP_CAP)?;
            let map =
                decode_map(section.version, &bytes).map_err(io_error("read the disk map of", file.path()))?;
            let pages = file.section(SectionKind::DiskDeltaPages);
            let data = pages.map(|p| section_disk(file, p.offset, p.len)).transpose()?;
            Overlay::from_delta(base, map, data, private)
        }
    };
    let path = saved.map_or(dir, MachineFile::path);
    overlay.map(Arc::new).map_err(io_error("lay the disk's changes over its base, of", path))
}

fn decode_map(version: u32, bytes: &[u8]) -> io::Result<DeltaMap> {
    if version != DISK_MAP_VERSION {
        let what = format!("disk map version {version}; this smolvm reads {DISK_MAP_VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    machine::decode_disk_map(bytes)
}
