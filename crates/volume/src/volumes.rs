//! The user's volumes: make, find, list, remove, grow, copy.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use artifact::copy::clone_file;
use artifact::space;
use disk::{Disk, SparseDisk};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use store::Dirs;

use crate::copy::copy_sparse;
use crate::error::{Error, io_error};

/// Smallest volume, bytes: that of the file system that each begins as.
pub const MIN_SIZE: u64 = 128 << 20;
/// A volume that no size was said for, bytes. It costs what is written.
pub const DEFAULT_SIZE: u64 = 16 << 30;
/// Newest version of [`Info`].
const VERSION: u32 = 1;
const MIB: u64 = 1 << 20;

/// What is written about a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// 1.
    pub version: u32,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// How often it was attached for writing.
    pub generation: u64,
    /// The instance that used it last.
    pub used_by: Option<String>,
    /// The volume that it is a copy of.
    pub copy_of: Option<String>,
    /// The copy of a machine that it was made for, and goes with.
    #[serde(default)]
    pub made_for: Option<String>,
}

/// Whether a word can name a volume: as an instance, but without a dot, which a host's path may have.
pub fn valid_name(name: &str) -> bool {
    spec::valid_name(name) && !name.contains('.')
}

/// All volumes of a user.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Volume {
    dir: PathBuf,
    name: String,
}

impl Volumes {
    /// Those of this user; nothing need exist.
    pub fn of(dirs: &Dirs) -> Self {
        Self { root: dirs.data.join("volumes") }
    }

    /// Makes an empty one.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::Taken`], [`Error::Size`], the host's.
    pub fn create(&self, name: &str, size: u64) -> Result<Volume, Error> {
        if !(MIN_SIZE..=disk::MAX_SIZE).contains(&size) || !size.is_multiple_of(MIB) {
            return Err(Error::Size { size });
        }
        self.make(name, (None, None), |path| {
            let blank = SparseDisk::new(assets::volume_ext4_list())?;
            let bytes = blank.stored().map(|(_, bytes)| bytes.len() as u64).sum();
            space::check(path, &self.root, bytes)?;
            let file = new_file(path)?;
            let written = blank.stored().try_for_each(|(offset, bytes)| file.write_all_at(bytes, offset));
            written.and_then(|()| file.set_len(size.max(blank.size()))).map_err(io_error("write", path))?;
            file.sync_all().map_err(io_error("bring to the disk", path))
        })
    }

    /// Copies one as it is on the disk now; nobody may be writing it.
    ///
    /// # Errors
    /// As [`Volumes::create`]; [`Error::InUse`].
    pub fn snapshot(&self, from: &Volume, name: &str) -> Result<Volume, Error> {
        let source = from.lock(FlockOperation::NonBlockingLockShared)?;
        self.make(name, (Some(&from.name), None), |path| self.fill(&source, path))
    }

    /// Makes the volume that the copy `instance` of a machine has in the place of `of`. Its bytes are in `from`, which is
    /// taken where the file system can and nobody needs it any more (`last`), shared or copied elsewhere.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub fn adopt(
        &self,
        name: &str,
        of: &str,
        instance: &str,
        from: &Path,
        last: bool,
    ) -> Result<Volume, Error> {
        self.make(name, (Some(of), Some(instance)), |path| {
            if last && fs::rename(from, path).is_ok() {
                return File::open(path)
                    .and_then(|file| file.sync_all())
                    .map_err(io_error("bring to the disk", path));
            }
            let source = File::open(from).map_err(io_error("open", from))?;
            self.fill(&source, path)
        })
    }

    /// Looks whether so many bytes more find room, where copies do not share.
    ///
    /// # Errors
    /// [`Error::File`] when they don't.
    pub fn has_room(&self, bytes: u64) -> Result<(), Error> {
        let there = self.root.ancestors().find(|dir| dir.is_dir()).unwrap_or(&self.root);
        if bytes == 0 || space::may_share(there) {
            Ok(())
        } else {
            Ok(space::check(&self.root, there, bytes)?)
        }
    }

    /// Makes a file with the bytes of `source`.
    fn fill(&self, source: &File, path: &Path) -> Result<(), Error> {
        let file = new_file(path)?;
        let failed = || io_error("copy a volume to", path);
        if !clone_file(source, &file).map_err(failed())? {
            let bytes = source.metadata().map_err(failed())?.blocks() * 512;
            space::check(path, &self.root, bytes)?;
            copy_sparse(source, &file).map_err(failed())?;
        }
        file.sync_all().map_err(failed())
    }

    /// Makes a volume beside its name, then gives it the name. What it is a copy of, and for which machine it is made.
    fn make(
        &self,
        name: &str,
        (copy_of, made_for): (Option<&str>, Option<&str>),
        fill: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<Volume, Error> {
        if !valid_name(name) {
            return Err(Error::BadName(name.to_owned()));
        }
        store::dirs::ensure_private(&self.root)?;
        let volume = Volume { dir: self.root.join(name), name: name.to_owned() };
        if volume.dir.exists() {
            return Err(Error::Taken(name.to_owned()));
        }
        let unnamed = self.root.join(format!(".{name}.{}", std::process::id()));
        let made = fs::create_dir(&unnamed).map_err(io_error("make the directory", &unnamed));
        let filled = made.and_then(|()| {
            // Says that its maker lives: see `leftovers`.
            let _alive = locked(&unnamed).map_err(io_error("lock", &unnamed))?;
            fill(&unnamed.join("disk"))?;
            let created_ms =
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
            let [copy_of, made_for] = [copy_of, made_for].map(|name| name.map(str::to_owned));
            let info = Info { version: VERSION, created_ms, generation: 0, used_by: None, copy_of, made_for };
            write_info(&unnamed, &info)?;
            // A directory takes the place of an empty one only: a volume of that name that came meanwhile stays.
            match fs::rename(&unnamed, &volume.dir) {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    Err(Error::Taken(name.to_owned()))
                }
                result => result.map_err(io_error("name the volume", &volume.dir)),
            }
        });
        if filled.is_err() {
            let _ = fs::remove_dir_all(&unnamed);
        }
        filled?;
        sync_dir(&self.root)?;
        Ok(volume)
    }

    /// What makers that are gone left unfinished; with `remove` it is removed.
    ///
    /// # Errors
    /// The host's.
    pub fn leftovers(&self, remove: bool) -> Result<Vec<PathBuf>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io_error("list", &self.root)(e)),
        };
        let mut found = Vec::new();
        for entry in entries.flatten().filter(|entry| is_unnamed(&entry.file_name().to_string_lossy())) {
            let path = entry.path();
            // Locked while it is removed; who made it just now and has not locked it yet fails to fill it.
            let Ok(_lock) = locked(&path) else { continue };
            if remove {
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
            found.push(path);
        }
        Ok(found)
    }

    /// Finds one.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::None`].
    pub fn get(&self, name: &str) -> Result<Volume, Error> {
        if !valid_name(name) {
            return Err(Error::BadName(name.to_owned()));
        }
        let volume = Volume { dir: self.root.join(name), name: name.to_owned() };
        if volume.disk_path().is_file() {
            return Ok(volume);
        }
        let names: Vec<String> = self.list()?.into_iter().map(|v| v.name).collect();
        let near = spec::nearest(name, names.iter().map(String::as_str));
        let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        Err(Error::None { name: name.to_owned(), near })
    }

    /// All, by name.
    ///
    /// # Errors
    /// The host's.
    pub fn list(&self) -> Result<Vec<Volume>, Error> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io_error("list", &self.root)(e)),
        };
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| valid_name(name)).collect();
        names.sort();
        Ok(names.into_iter().map(|name| Volume { dir: self.root.join(&name), name }).collect())
    }
}

impl Volume {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk's file: a plain ext4 image.
    pub fn disk_path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Bytes that it can hold, and bytes that it takes on the host.
    ///
    /// # Errors
    /// The host's.
    pub fn sizes(&self) -> Result<(u64, u64), Error> {
        let path = self.disk_path();
        let meta = fs::metadata(&path).map_err(io_error("look at", &path))?;
        Ok((meta.len(), meta.blocks() * 512))
    }

    /// # Errors
    /// [`Error::BadInfo`].
    pub fn info(&self) -> Result<Info, Error> {
        let bad = |why: String| Error::BadInfo { name: self.name.clone(), why, path: self.disk_path() };
        let text = fs::read(self.dir.join("volume.json")).map_err(|e| bad(e.to_string()))?;
        let info: Info = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if info.version != VERSION {
            return Err(bad(format!("it has version {}, this smolvm reads {VERSION}", info.version)));
        }
        Ok(info)
    }

    pub(crate) fn write_info(&self, info: &Info) -> Result<(), Error> {
        write_info(&self.dir, info)
    }

    /// Opens the disk and locks it, or says who is in the way.
    pub(crate) fn lock(&self, how: FlockOperation) -> Result<File, Error> {
        let path = self.disk_path();
        let writable = matches!(how, FlockOperation::NonBlockingLockExclusive);
        let file = File::options().read(true).write(writable).open(&path).map_err(io_error("open", &path))?;
        match rustix::fs::flock(&file, how) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let by = self.info().ok().and_then(|info| info.used_by);
                let by = by.map(|name| format!(" by `{name}`")).unwrap_or_default();
                Err(Error::InUse { name: self.name.clone(), by })
            }
            Err(e) => Err(io_error("lock", &path)(e.into())),
        }
    }

    /// Whether a machine has it attached.
    pub fn is_in_use(&self) -> bool {
        matches!(self.lock(FlockOperation::NonBlockingLockExclusive), Err(Error::InUse { .. }))
    }

    /// Makes it larger; its file system follows when it is mounted next.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::Shrink`], [`Error::InUse`], the host's.
    pub fn grow(&self, size: u64) -> Result<(), Error> {
        let (have, _) = self.sizes()?;
        if size < have {
            return Err(Error::Shrink { name: self.name.clone(), have });
        }
        if size > disk::MAX_SIZE || !size.is_multiple_of(MIB) {
            return Err(Error::Size { size });
        }
        let path = self.disk_path();
        let file = self.lock(FlockOperation::NonBlockingLockExclusive)?;
        file.set_len(size).and_then(|()| file.sync_all()).map_err(io_error("grow", &path))
    }

    /// Removes it with its data.
    ///
    /// # Errors
    /// [`Error::InUse`], the host's.
    pub fn remove(self) -> Result<(), Error> {
        let _lock = self.lock(FlockOperation::NonBlockingLockExclusive)?;
        fs::remove_dir_all(&self.dir).map_err(io_error("remove", &self.dir))
    }
}

/// `.NAME.PID`, as [`Volumes::create`] has it.
fn is_unnamed(file: &str) -> bool {
    let parts = file.strip_prefix('.').and_then(|rest| rest.rsplit_once('.'));
    parts.is_some_and(|(name, pid)| valid_name(name) && pid.parse::<u32>().is_ok())
}

/// A directory, locked while this exists; an error when it is locked already.
fn locked(dir: &Path) -> io::Result<File> {
    let file = File::open(dir)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn new_file(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path).map_err(io_error("make", path))
}

fn write_info(dir: &Path, info: &Info) -> Result<(), Error> {
    // Several readers take a volume at once: each writes a file of its own.
    let (path, temp) = (dir.join("volume.json"), dir.join(format!(".volume.json.{}", std::process::id())));
    let text = serde_json::to_vec_pretty(info).map_err(io::Error::other);
    let written = text.and_then(|text| {
        let file = File::create(&temp)?;
        file.write_all_at(&text, 0)?;
        file.sync_all()?;
        fs::rename(&temp, &path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written.map_err(io_error("write", &path))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("bring to the disk", dir))
}
