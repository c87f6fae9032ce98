//! An instance's directory and what is written in it.
//!
//! ```text
//! instances/NAME/record.json   what it is (Record), replaced atomically
//!                plan.json     how it is started
//!                update.json   what it was before an update that is not whole yet
//!                lock          held (flock) by the VMM while it lives
//!                saved         memory, CPU, devices and disk while frozen; disk while stopped
//!                code          what the engine made of the guest's code until it was frozen; only this very
//!                              program reads it, for this very `saved`
//!                origin        what a copy was made of: state, and what differs from its machine file;
//!                              one file with a name for each of the copies made at once
//!                kernel.log    the serial console, bounded
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use artifact::temp::sync_dir;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use store::{Dirs, Store};

use crate::error::{Error, io_error};

/// What an instance's last VMM left behind, or is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its VMM lives.
    Running,
    /// Memory and disk are saved.
    Frozen,
    /// The disk is saved.
    Stopped,
    /// Its VMM ended without saving.
    Dead,
}

impl Phase {
    /// Whether a file holds its state or disk.
    pub fn is_saved(self) -> bool {
        matches!(self, Phase::Frozen | Phase::Stopped)
    }

    /// The word in tables and messages.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Frozen => "frozen",
            Phase::Stopped => "stopped",
            Phase::Dead => "dead",
        }
    }
}

/// What an instance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    /// Identity of its machine file in the store, hex.
    pub file: String,
    /// What the user called the machine file.
    pub source: String,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// As the last VMM wrote it; [`Instance::phase`] knows whether that is still so.
    pub phase: Phase,
    pub pid: u32,
    pub engine: String,
    pub command: Vec<String>,
    /// Whether it stays after its command ends.
    pub kept: bool,
    /// Published ports: (host address, guest port).
    pub ports: Vec<(String, u16)>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Exit code of the service or command, once it ended.
    pub exit_code: Option<u8>,
    /// The instance that it is a copy of.
    #[serde(default)]
    pub forked_from: Option<String>,
    /// Networks on which it and others reach each other by name.
    #[serde(default)]
    pub networks: Vec<String>,
    /// How often its service was started again since it was run.
    #[serde(default)]
    pub restarts: u32,
    /// What its health check found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The session of its command among what was frozen, once it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    /// It was not started since it was moved to another machine file: nothing is saved, and nothing was lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// Published UDP ports: (host address, guest port).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp_ports: Vec<(String, u16)>,
}

/// How a service is, by a check of its user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    Unhealthy,
}

impl Health {
    /// The word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        }
    }
}

/// The name of the record's file.
pub(crate) const RECORD: &str = "record.json";
/// The name of the file whose lock says that its VMM lives.
const LOCK: &str = "lock";

/// What a small file that replaces another one is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// After a kill there is the old one or the new one. After a power failure perhaps neither.
    Kill,
    /// After a power failure, too, there is the old one or the new one.
    Power,
    /// The new one is there to stay.
    Durable,
}

/// How it is started, which its starter writes.
pub const PLAN: &str = "plan.json";

/// Files that are written without waiting for the disk as long as nothing is saved.
const UNSYNCED: [&str; 2] = [PLAN, "volumes.json"];

/// An instance's directory.
#[derive(Debug)]
pub struct Instance {
    dir: PathBuf,
    runtime: PathBuf,
    name: String,
    /// Held while this process is its VMM.
    lock: Option<File>,
}

impl Instance {
    pub(crate) fn at(dirs: &Dirs, name: &str) -> Result<Self, Error> {
        if !spec::valid_name(name) {
            return Err(Error::BadName(name.to_owned()));
        }
        let dir = dirs.instances().join(name);
        Ok(Self { dir, runtime: dirs.runtime.clone(), name: name.to_owned(), lock: None })
    }

    /// Makes a new instance and becomes its VMM.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::BadName`], the host's.
    pub fn create(dirs: &Dirs, name: &str) -> Result<Self, Error> {
        let mut this = Self::at(dirs, name)?;
        store::dirs::ensure_private(&dirs.instances())?;
        store::dirs::ensure_private(&dirs.runtime)?;
        match fs::create_dir(&this.dir) {
            Ok(()) => this.acquire()?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if !this.take_over()? {
                    return Err(Error::NameTaken { name: name.to_owned(), state: this.phase_word() });
                }
            }
            Err(e) => return Err(io_error("make the directory", &this.dir)(e)),
        }
        Ok(this)
    }

    /// Whether an instance has this name. A directory that was left before it was one has none.
    pub fn is_taken(dirs: &Dirs, name: &str) -> bool {
        Self::at(dirs, name).is_ok_and(|this| this.dir.exists() && !this.is_unborn())
    }

    /// Whether whoever made its directory was killed before its first record.
    fn is_unborn(&self) -> bool {
        !self.path(RECORD).exists() && !self.saved().exists() && !self.is_held()
    }

    /// Becomes the VMM of what is left of an instance that never was one; `false` when it is one, or somebody else's.
    fn take_over(&mut self) -> Result<bool, Error> {
        if !self.is_unborn() || self.acquire().is_err() {
            return Ok(false);
        }
        // Meanwhile its directory may have become an instance, or have been removed and made again with another lock.
        let path = self.dir.join(LOCK);
        let inode = |meta: io::Result<fs::Metadata>| meta.map(|meta| (meta.dev(), meta.ino())).ok();
        let held = self.lock.as_ref().and_then(|lock| inode(lock.metadata()));
        if self.path(RECORD).exists() || inode(fs::metadata(&path)) != held {
            self.lock = None;
            return Ok(false);
        }
        let entries = fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|left| *left != path) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(true)
    }

    /// Finds one.
    ///
    /// # Errors
    /// [`Error::NoInstance`], with the nearest name.
    pub fn open(dirs: &Dirs, name: &str) -> Result<Self, Error> {
        let this = Self::at(dirs, name)?;
        if this.dir.is_dir() {
            return Ok(this);
        }
        let names: Vec<String> = list(dirs)?.into_iter().map(|i| i.name).collect();
        let near = spec::nearest(name, names.iter().map(String::as_str));
        let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        Err(Error::NoInstance { name: name.to_owned(), near })
    }

    /// Becomes the VMM of this instance: takes its lock for the life of this value.
    ///
    /// # Errors
    /// [`Error::Running`] when another process is.
    pub fn acquire(&mut self) -> Result<(), Error> {
        let path = self.dir.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.lock = Some(file),
            Err(_) => return Err(Error::Running { name: self.name.clone() }),
        }
        Ok(())
    }

    /// [`Instance::acquire`], waiting for a VMM that is about to end.
    ///
    /// # Errors
    /// The host's.
    pub fn acquire_soon(&mut self) -> Result<(), Error> {
        self.lock = Some(self.locked(FlockOperation::LockExclusive)?);
        Ok(())
    }

    /// Waits until its VMM, if any, has ended.
    ///
    /// # Errors
    /// The host's.
    pub fn wait_end(&self) -> Result<(), Error> {
        self.locked(FlockOperation::LockShared).map(drop)
    }

    fn locked(&self, how: FlockOperation) -> Result<File, Error> {
        let path = self.dir.join(LOCK);
        let file = File::options().read(true).write(true).open(&path).map_err(io_error("open", &path))?;
        rustix::fs::flock(&file, how).map_err(|e| io_error("wait for", &path)(e.into()))?;
        Ok(file)
    }

    /// Whether another process holds the lock.
    pub(crate) fn is_held(&self) -> bool {
        if self.lock.is_some() {
            return true;
        }
        let Ok(file) = File::open(self.dir.join(LOCK)) else { return false };
        // A shared lock, given back at once: two who look don't see each other.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path inside its directory.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// Memory, CPU, devices and disk of the last freeze, or the disk of the last stop.
    pub fn saved(&self) -> PathBuf {
        self.path("saved")
    }

    /// What a copy was made of.
    pub fn origin(&self) -> PathBuf {
        self.path("origin")
    }

    /// Where its VMM listens. Short, since a socket's path has at most 107 bytes.
    pub fn socket(&self) -> PathBuf {
        self.runtime.join(format!("{}.sock", self.name))
    }

    /// Where its VMM takes connections of its neighbours.
    pub(crate) fn network_socket(&self) -> PathBuf {
        self.runtime.join(format!("{}.net", self.name))
    }

    /// # Errors
    /// [`Error::BadRecord`].
    pub fn record(&self) -> Result<Record, Error> {
        let bad = |why: String| Error::BadRecord { name: self.name.clone(), why };
        let text = fs::read(self.path(RECORD)).map_err(|e| bad(e.to_string()))?;
        let record: Record = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        // Copies share their first record: the directory's name is its name.
        Ok(Record { name: self.name.clone(), ..record })
    }

    /// Has the same record as `other`, under its own name, until one of them changes: another name for the file, which
    /// costs the file system less than a file.
    ///
    /// # Errors
    /// The host's.
    pub fn share_record(&self, other: &Instance) -> Result<(), Error> {
        let (from, to) = (other.path(RECORD), self.path(RECORD));
        fs::hard_link(&from, &to).map_err(io_error("write", &to))
    }

    /// Replaces the record. One that says that something is saved is durable, with all that a start needs.
    ///
    /// # Errors
    /// The host's.
    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        let lasting = if record.phase.is_saved() { Lasting::Durable } else { Lasting::Kill };
        self.put_record(record, lasting)
    }

    /// Replaces the record.
    ///
    /// # Errors
    /// The host's.
    pub fn put_record(&self, record: &Record, lasting: Lasting) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other);
        let text = text.map_err(io_error("write", &self.path(RECORD)))?;
        if lasting == Lasting::Durable {
            self.sync()?;
        }
        self.put(RECORD, &text, lasting)
    }

    /// Replaces a small file of its directory: a reader sees the old bytes or the new ones.
    ///
    /// # Errors
    /// The host's.
    pub fn put(&self, file: &str, bytes: &[u8], lasting: Lasting) -> Result<(), Error> {
        let (path, temp) = (self.path(file), self.path(&format!("{file}.new")));
        let written = File::create(&temp).and_then(|mut to| {
            to.write_all(bytes)?;
            if lasting == Lasting::Kill { Ok(()) } else { to.sync_all() }
        });
        written.map_err(io_error("write", &temp))?;
        fs::rename(&temp, &path).map_err(io_error("replace", &path))?;
        match lasting {
            Lasting::Durable => sync_dir(&self.dir).map_err(io_error("bring to the disk", &self.dir)),
            Lasting::Kill | Lasting::Power => Ok(()),
        }
    }

    /// Removes a file of its directory, if it is there, and brings that to the disk.
    ///
    /// # Errors
    /// The host's.
    pub fn take_away(&self, file: &str) -> Result<(), Error> {
        let path = self.path(file);
        match fs::remove_file(&path) {
            Ok(()) => sync_dir(&self.dir).map_err(io_error("bring to the disk", &self.dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("remove", &path)(e)),
        }
    }

    /// Brings to the disk what was written without waiting for it while there was nothing to lose.
    fn sync(&self) -> Result<(), Error> {
        for file in UNSYNCED {
            match File::open(self.path(file)).and_then(|file| file.sync_all()) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error("bring to the disk", &self.path(file))(e)),
            }
        }
        let dirs = [Some(self.dir.as_path()), self.dir.parent()];
        dirs.into_iter()
            .flatten()
            .try_for_each(|dir| sync_dir(dir).map_err(io_error("bring to the disk", dir)))
    }

    /// Changes the record in place.
    ///
    /// # Errors
    /// As [`Instance::record`] and [`Instance::write_record`].
    pub fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        // Threads of a VMM that change it at the same time must not lose each other's words.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.record()?;
        let mut record = old.clone();
        change(&mut record);
        if record == old {
            return Ok(());
        }
        let lasting = match record.phase.is_saved() || old.phase.is_saved() {
            true => Lasting::Durable,
            // A copy ends with the power, and so does what nobody keeps.
            false if record.kept && record.forked_from.is_none() => Lasting::Power,
            false => Lasting::Kill,
        };
        self.put_record(&record, lasting)
    }

    /// What state it is in: what its record says, corrected by whether its VMM lives.
    pub fn phase(&self) -> Phase {
        match (self.is_held(), self.record().map(|r| r.phase)) {
            (true, _) => Phase::Running,
            (false, Ok(Phase::Frozen)) => Phase::Frozen,
            (false, Ok(Phase::Stopped)) => Phase::Stopped,
            (false, _) => Phase::Dead,
        }
    }

    /// Bytes that its files take on the disk. Files of several names are counted once, by whoever comes first: `seen`
    /// holds device and inode of what was counted.
    pub fn on_disk(&self, seen: &mut HashSet<(u64, u64)>) -> u64 {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| entry.metadata().ok());
        files.filter(|meta| seen.insert((meta.dev(), meta.ino()))).map(|meta| meta.blocks() * 512).sum()
    }

    /// Whether nobody asked to keep it once its VMM is gone.
    fn is_unwanted(&self) -> bool {
        let made = fs::metadata(&self.dir).and_then(|dir| dir.modified());
        let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age >= UNWRITTEN));
        if self.path(RECORD).exists() {
            // One that cannot be read may be wanted: `rm` is for it. Without a plan it never ran and cannot be started:
            // of a fork that was cut off.
            return self.record().is_ok_and(|record| !record.kept || (old && !self.path(PLAN).exists()));
        }
        old
    }

    fn phase_word(&self) -> &'static str {
        self.phase().word()
    }

    /// [`Error::NotRunning`] unless its VMM lives.
    ///
    /// # Errors
    /// As said.
    pub fn require_running(&self) -> Result<(), Error> {
        match self.phase() {
            Phase::Running => Ok(()),
            other => Err(Error::NotRunning { name: self.name.clone(), state: other.word() }),
        }
    }

    /// Removes it and everything it saved. Its VMM must be this process or none.
    ///
    /// # Errors
    /// [`Error::Running`], the host's.
    pub fn remove(mut self) -> Result<(), Error> {
        if self.lock.is_none() {
            self.acquire()?;
        }
        self.discard()
    }

    /// [`Instance::remove`] for its VMM, whose other threads still hold it.
    ///
    /// # Errors
    /// [`Error::Running`] when this process is not its VMM; the host's.
    pub fn discard(&self) -> Result<(), Error> {
        if self.lock.is_none() {
            return Err(Error::Running { name: self.name.clone() });
        }
        let _ = fs::remove_file(self.socket());
        let _ = fs::remove_file(self.network_socket());
        fs::remove_dir_all(&self.dir).map_err(io_error("remove", &self.dir))
    }
}

/// All instances, by name.
///
/// # Errors
/// The host's.
pub fn list(dirs: &Dirs) -> Result<Vec<Instance>, Error> {
    let mut all = directories(dirs)?;
    all.retain(|instance| !instance.is_unborn());
    Ok(all)
}

/// All directories of instances, and those that were left before they were one.
pub(crate) fn directories(dirs: &Dirs) -> Result<Vec<Instance>, Error> {
    let root = dirs.instances();
    let entries = match fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("list", &root)(e)),
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names.iter().filter_map(|name| Instance::at(dirs, name).ok()).collect())
}

/// How old a directory without a record or plan must be: its `run` may still be writing it.
const UNWRITTEN: Duration = Duration::from_secs(60);

/// Removes what killed VMMs left and nobody asked to keep: dead instances that were to be discarded at their end, and
/// directories whose VMM died before it wrote what they are. The names of what is gone, or with `dry_run` would be.
///
/// # Errors
/// The host's.
pub fn remove_dead(dirs: &Dirs, dry_run: bool) -> Result<Vec<String>, Error> {
    let mut gone = Vec::new();
    for instance in directories(dirs)? {
        if instance.phase() != Phase::Dead || !instance.is_unwanted() {
            continue;
        }
        let name = instance.name.clone();
        match if dry_run { Ok(()) } else { instance.remove() } {
            Ok(()) => gone.push(name),
            // Somebody started or removed it meanwhile.
            Err(Error::Running { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// Makes sure that the store knows what each kept instance needs, whatever a power failure took.
///
/// # Errors
/// The store's, the host's.
pub fn hold_needed(dirs: &Dirs, store: &Store) -> Result<(), Error> {
    for instance in list(dirs)? {
        let Some(record) = instance.record().ok().filter(|record| record.kept) else { continue };
        let Ok(id) = record.file.parse() else { continue };
        let owner = instance.path("");
        if store.is_referred(&id, &owner) {
            continue;
        }
        match store.pin(&id) {
            Ok(pin) => store.add_reference(&pin, &owner)?,
            // Nothing to hold.
            Err(store::Error::Gone { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

const FIRST: [&str; 24] = [
    "amber", "brisk", "calm", "clear", "cosy", "crisp", "dapper", "eager", "early", "fair", "fleet", "glad",
    "keen", "lively", "lucid", "mellow", "neat", "nimble", "quiet", "rapid", "sunny", "swift", "tidy",
    "vivid",
];
const SECOND: [&str; 24] = [
    "acorn", "badger", "beetle", "cedar", "comet", "coral", "falcon", "fern", "finch", "harbor", "heron",
    "island", "lantern", "maple", "marlin", "meadow", "otter", "pebble", "raven", "river", "sparrow",
    "tulip", "walnut", "wren",
];

/// A free name of two words.
pub fn new_name(dirs: &Dirs) -> String {
    let mut seed = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    let mut n = u64::from_le_bytes(seed);
    let mut pick = |words: &[&'static str]| {
        let word = words[(n % words.len() as u64) as usize];
        n /= words.len() as u64;
        word
    };
    let name = format!("{}-{}", pick(&FIRST), pick(&SECOND));
    if Instance::is_taken(dirs, &name) { format!("{name}-{}", n % 100_000) } else { name }
}
