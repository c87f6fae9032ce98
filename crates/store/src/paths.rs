//! Which machine a user's path stands for, without reading the file.
//!
//! A file that was imported is recognised by device, inode, size, and the times of its last change in content
//! (mtime) and in anything (ctime). Times have a granularity, of up to 2 s on some file systems: a file that
//! changed less than that before it was read could change again and look the same, so it is not recorded.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use artifact::Digest;

use crate::error::{Error, Result};
use crate::root::Store;

/// See the head of this file.
const GRANULARITY: Duration = Duration::from_secs(2);

const MAGIC: [u8; 8] = *b"SMOLPTH1";

/// The length of a record: magic, seven numbers, id, and the first half of the BLAKE3 of all that.
const RECORD_LEN: usize = 8 + 7 * 8 + 32 + 16;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(meta: &Metadata) -> Stamp {
        Stamp {
            dev: meta.dev(),
            ino: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether every later change shows in the stamp, given that the file was read from `now` on.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let latest = self.modified.max(self.changed);
        let (Ok(secs), Ok(nanos)) = (u64::try_from(latest.0), u32::try_from(latest.1)) else {
            // Before 1970: long ago, but nothing to compute with.
            return false;
        };
        let latest = Duration::new(secs, nanos.min(999_999_999));
        latest.checked_add(GRANULARITY).is_some_and(|settled| settled <= now)
    }

    fn key(&self) -> String {
        format!("{:x}-{:x}", self.dev, self.ino)
    }

    fn record(&self, id: &Digest) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let times = [self.modified.0, self.modified.1, self.changed.0, self.changed.1];
        let numbers = [self.dev, self.ino, self.len].into_iter().chain(times.map(i64::cast_unsigned));
        numbers.for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(id.as_bytes());
        let check = Digest::of(&bytes);
        bytes.extend(check.as_bytes().iter().take(16));
        bytes
    }
}

/// The id in a record, if the record is whole and is about this state of the file.
fn id_in(record: &[u8], stamp: &Stamp) -> Option<Digest> {
    let record: &[u8; RECORD_LEN] = record.try_into().ok()?;
    let (before, _) = record.split_last_chunk::<16>()?;
    let (_, id) = before.split_last_chunk::<32>()?;
    let id = Digest::from_bytes(*id);
    (stamp.record(&id) == record).then_some(id)
}

/// Whether a record is as it was written, whatever it is about.
pub(crate) fn is_whole(record: &[u8]) -> bool {
    let parts = record.split_last_chunk::<16>();
    record.len() == RECORD_LEN
        && record.starts_with(&MAGIC)
        && parts.is_some_and(|(bytes, check)| Digest::of(bytes).as_bytes().starts_with(check))
}

impl Store {
    /// The id of the file at `path`, if it was imported and did not change since. Costs a stat and the read of
    /// one small file, whatever the store holds. That the object is still there, [`Store::pin`] says.
    pub fn lookup_path(&self, path: &Path) -> Result<Option<Digest>> {
        let meta = fs::metadata(path).map_err(|error| Error::io(path, "open it", error))?;
        self.lookup_stamp(&Stamp::of(&meta))
    }

    pub(crate) fn lookup_stamp(&self, stamp: &Stamp) -> Result<Option<Digest>> {
        let record = self.part("paths").join(stamp.key());
        match fs::read(&record) {
            Ok(bytes) => Ok(id_in(&bytes, stamp)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&record, "read it", error)),
        }
    }

    /// Notes what a file in this state holds. Not brought to the disk: a record that a power failure tears is
    /// none, and the file is imported once more.
    pub(crate) fn record_stamp(&self, stamp: &Stamp, id: &Digest) -> Result<()> {
        self.put("paths", &stamp.key(), &stamp.record(id), false)
    }

    /// Removes records of objects that are gone.
    pub(crate) fn clean_paths(&self) -> Result<()> {
        for name in self.names_in("paths")? {
            let path = self.part("paths").join(name);
            let Ok(bytes) = fs::read(&path) else { continue };
            let id = bytes.get(RECORD_LEN - 48..RECORD_LEN - 16).and_then(|id| id.try_into().ok());
            let known = id.is_some_and(|id| self.object_path(&Digest::from_bytes(id)).exists());
            if !known {
                // Best effort: a record is never wrong, only useless.
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}
