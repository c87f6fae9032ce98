//! What is in a machine file, as a VMM uses it: the specification, boot media, disks.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use artifact::{MachineFile, SectionKind};
use disk::{Delta, DeltaMap, Disk, FileDisk, Overlay, Private, SparseDisk};
use guestmem::{GuestMemory, PAGE_SIZE};
use machine::DISK_MAP_VERSION;
use snapshot::{Point, SnapshotInfo};
use spec::{CpuProfile, Hooks, MachineSpec, SPEC_VERSION};
use store::{Pin, Store};

use crate::error::{Error, io_error};

/// Most bytes of a specification.
const SPEC_CAP: u64 = 1 << 20;
/// Version of a kernel or initramfs that is stored as it is.
const BOOT_RAW: u32 = 1;
/// Version of a kernel or initramfs that is stored as one zstd frame.
pub const BOOT_ZSTD: u32 = 2;
/// Most bytes of a kernel or initramfs, unpacked, too.
const BOOT_CAP: u64 = 256 << 20;
/// Most bytes of a disk map.
const MAP_CAP: u64 = 64 << 20;

/// A machine file of the store, in use.
pub struct Media {
    /// Keeps the object from being pruned.
    pub pin: Pin,
    /// Header and index are read once and shared by all who need them.
    pub file: Arc<MachineFile>,
    /// The file that it builds on, and its pin.
    parent: Option<(Pin, Arc<MachineFile>)>,
    pub spec: MachineSpec,
    /// Which of the file's snapshots this is about; `None`: about its base.
    pub snapshot: Option<Point>,
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
        net: None,
        image: None,
    }
}

impl Media {
    /// Reads the specification of an object that stands alone: its base, to be booted.
    ///
    /// # Errors
    /// The file's; a specification of another version.
    pub fn open(pin: Pin) -> Result<Self, Error> {
        let file = pin.open()?;
        Self::of(pin, file)
    }

    fn of(pin: Pin, file: MachineFile) -> Result<Self, Error> {
        let spec = read_spec(&file)?;
        Ok(Self { pin, file: Arc::new(file), parent: None, spec, snapshot: None })
    }

    /// [`Media::open`] of an object that may build on another one of the store.
    ///
    /// # Errors
    /// As there; a parent that is not in the store.
    pub fn open_in(store: &Store, pin: Pin) -> Result<Self, Error> {
        let file = pin.open()?;
        let Some(below) = store.parent(&file)? else { return Self::of(pin, file) };
        let parent = Self::open(below)?;
        Ok(Self {
            pin,
            file: Arc::new(file),
            spec: parent.spec,
            parent: Some((parent.pin, parent.file)),
            snapshot: None,
        })
    }

    /// An object as one of its snapshots sees it: that of this name, or the default to resume. What
    /// builds on another file builds on its snapshot of that name.
    ///
    /// # Errors
    /// As [`Media::open_in`]; no snapshot of that name.
    pub fn open_snapshot(store: &Store, pin: Pin, name: Option<&str>) -> Result<Self, Error> {
        let mut media = Self::open_in(store, pin)?;
        let point = snapshot::find(&media.file, name)?;
        media.file = selected(media.file, &point)?;
        if let Some((pin, file)) = media.parent.take() {
            let below = snapshot::find(&file, Some(&point.info.name))?;
            media.parent = Some((pin, selected(file, &below)?));
        }
        Ok(media.at(point))
    }

    /// The file with kernel, root and specification.
    pub fn base(&self) -> &Arc<MachineFile> {
        self.parent.as_ref().map_or(&self.file, |(_, file)| file)
    }

    /// The file that `from` builds on, among this one and its parent.
    ///
    /// # Errors
    /// A parent that is neither.
    pub(crate) fn parent_of(&self, from: &MachineFile) -> Result<Option<&MachineFile>, Error> {
        let Some(id) = from.parent() else { return Ok(None) };
        let parent = [&self.file, self.base()].into_iter().find(|file| file.id() == id);
        parent.map(|file| Some(file.as_ref())).ok_or_else(|| {
            Error::Refused(format!("{} builds on another machine file, {id}", from.path().display()))
        })
    }

    /// A base that is booted to become a snapshot.
    pub fn to_become(self, info: SnapshotInfo) -> Self {
        self.at(Point { instance: 0, info })
    }

    /// Before its service starts a machine has none: nothing to wait for, no hooks of it to run.
    fn at(mut self, point: Point) -> Self {
        if point.info.after_step.is_some() {
            (self.spec.service, self.spec.ready) = (None, None);
            self.spec.hooks = Hooks::default();
        }
        self.snapshot = Some(point);
        self
    }

    /// A section that is needed to boot, unpacked.
    fn read(&self, kind: SectionKind) -> Result<Vec<u8>, Error> {
        let base = self.base();
        let section = base.require(kind, 0)?;
        let bytes = base.read_section(section, BOOT_CAP)?;
        let refused = |why: String| Error::Refused(format!("{}: its {kind} {why}", base.path().display()));
        match section.version {
            BOOT_RAW => Ok(bytes),
            BOOT_ZSTD => {
                let mut unpacked = Vec::new();
                let frame = zstd::Decoder::new(&bytes[..]);
                let read = frame.and_then(|frame| frame.take(BOOT_CAP + 1).read_to_end(&mut unpacked));
                match read {
                    Ok(len) if len as u64 <= BOOT_CAP => Ok(unpacked),
                    Ok(_) => Err(refused(format!("unpacks to more than {} MiB", BOOT_CAP >> 20))),
                    Err(e) => Err(refused(format!("cannot be unpacked: {e}; rebuild the file"))),
                }
            }
            other => Err(refused(format!("has version {other}; this smolvm reads {BOOT_ZSTD}"))),
        }
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
        let base = self.base();
        let section = base.require(SectionKind::RootImage, 0)?;
        let disk = section_disk(base, section.offset, section.len)?;
        Ok(Arc::new(disk))
    }
}

/// How many pages of two frozen machines' memories differ, and how many there are in the larger
/// one. Each is a file and the media that it belongs to.
///
/// # Errors
/// The files'.
pub fn differing_pages(a: (&Media, &MachineFile), b: (&Media, &MachineFile)) -> Result<(u64, u64), Error> {
    let (a, b) = (memory(a.0, a.1)?, memory(b.0, b.1)?);
    let both = a.page_count().min(b.page_count());
    let all = a.page_count().max(b.page_count()) as u64;
    let mut pages = [[0; PAGE_SIZE as usize]; 2];
    let mut differ = all - both as u64;
    for page in 0..both {
        a.read_page(page, &mut pages[0]);
        b.read_page(page, &mut pages[1]);
        differ += u64::from(pages[0] != pages[1]);
    }
    Ok((differ, all))
}

fn memory(media: &Media, file: &MachineFile) -> Result<GuestMemory, Error> {
    let memory = GuestMemory::new(media.spec.memory).map_err(io_error("map the memory of", file.path()))?;
    snapshot::map_memory(file, media.parent_of(file)?, &memory).map_err(machine::Error::from)?;
    Ok(memory)
}

/// A file that was just opened, with one of its snapshots alone.
fn selected(file: Arc<MachineFile>, point: &Point) -> Result<Arc<MachineFile>, Error> {
    let own = match Arc::try_unwrap(file) {
        Ok(own) => own,
        Err(shared) => shared.again()?,
    };
    Ok(Arc::new(snapshot::select(own, point)))
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

/// The writable disk of a machine that was stopped, as `saved` holds it, to be read.
///
/// # Errors
/// The file's; a disk map that does not fit.
pub fn saved_disk(saved: &MachineFile) -> Result<Arc<dyn Disk>, Error> {
    // Nothing is written, so nothing is made there.
    Ok(scratch(&[saved], &std::env::temp_dir())?)
}

/// The writable disk: what `saved` files say was changed of a blank file system, the lowest first,
/// and a private layer in `dir` on top, gone when the process is.
///
/// # Errors
/// The files'; a disk map that does not fit; the host's.
pub(crate) fn scratch(saved: &[&MachineFile], dir: &Path) -> Result<Arc<Overlay>, Error> {
    let blank = SparseDisk::new(assets::blank_ext4_list())
        .map_err(|e| Error::Refused(format!("the built-in blank disk is damaged: {e}")))?;
    let deltas = saved.iter().filter_map(|file| delta(file).transpose()).collect::<Result<_, _>>()?;
    let path = saved.last().map_or(dir, |file| file.path());
    Overlay::from_deltas(Arc::new(blank), deltas, Private::later(dir))
        .map(Arc::new)
        .map_err(io_error("lay the disk's changes over its base, of", path))
}

fn delta(file: &MachineFile) -> Result<Option<Delta>, Error> {
    let Some(section) = file.section(SectionKind::DiskDeltaMap) else { return Ok(None) };
    let bytes = file.read_section(section, MAP_CAP)?;
    let map = decode_map(section.version, &bytes).map_err(io_error("read the disk map of", file.path()))?;
    let pages = file.section(SectionKind::DiskDeltaPages).filter(|p| p.len > 0);
    let section = pages.map(|p| section_disk(file, p.offset, p.len)).transpose()?;
    Ok(Some(Delta { map, section }))
}

fn decode_map(version: u32, bytes: &[u8]) -> io::Result<DeltaMap> {
    if version != DISK_MAP_VERSION {
        let what = format!("disk map version {version}; this smolvm reads {DISK_MAP_VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    machine::decode_disk_map(bytes)
}
