//! What a kill, a power failure, a failing disk or a person left in the store, and what can be done about it.
//!
//! Order: leftovers first, then every object (each byte of it), then what leads to objects. Nothing that holds data is
//! deleted: it is set aside in `damaged/`, under its name and a number.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use artifact::temp::{leftovers, sync_dir};
use artifact::{Digest, MachineFile, Problem, Progress, VerifyOptions};

use crate::error::{Error, Result};
use crate::list::Image;
use crate::pin::same_file;
use crate::root::Store;

/// How [`Store::check`] works.
#[derive(Clone, Copy, Default)]
pub struct CheckOptions<'a> {
    /// Mend what can be mended, instead of only telling of it.
    pub repair: bool,
    /// Called now and then while an object is read; [`ControlFlow::Break`] ends the check with [`Problem::Cancelled`].
    pub progress: Option<&'a Watch<'a>>,
}

/// Hears which object is read, and how far; called from any thread.
pub type Watch<'a> = dyn Fn(&Digest, Progress) -> ControlFlow<()> + Sync + 'a;

/// What is wrong with one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// An unfinished file of a process that is gone. Mended by removing it.
    Leftover,
    /// A name that nothing of smolvm has. Set aside.
    Foreign,
    /// An object whose bytes are not what its name says: why. Set aside.
    Damaged(String),
    /// An object that has another name, outside of the store too perhaps, through which it can be written. Mended by
    /// a copy of its own.
    Linked,
    /// An object that can be written. Mended.
    Writable,
    /// An object that builds on one that is not there.
    NoParent(Digest),
    /// An object that builds on one that does not know so. Mended.
    NoReference(Digest),
    /// A name for an object that is not there. Removed.
    NameOfNothing(Digest),
    /// A name that says nothing. Set aside.
    DamagedName,
    /// A record of a path that is damaged. Removed: the file is looked at anew.
    DamagedRecord,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub path: PathBuf,
    /// What a user calls it: a name, or an id's beginning.
    pub what: String,
    /// What is wrong.
    pub fault: Fault,
    /// Whether it is mended now.
    pub mended: bool,
    /// Where it was put, if it was set aside.
    pub aside: Option<PathBuf>,
}

impl Finding {
    /// What is done about it, or would be with `repair`; `None` where a person has to.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self.fault {
            Fault::Leftover | Fault::NameOfNothing(_) | Fault::DamagedRecord => "removed",
            Fault::Foreign | Fault::Damaged(_) | Fault::DamagedName => "set aside",
            Fault::Linked => "given bytes of its own",
            Fault::Writable => "made read-only",
            Fault::NoReference(_) => "noted",
            Fault::NoParent(_) => return None,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, path, .. } = self;
        match &self.fault {
            Fault::Leftover => write!(f, "{}: left unfinished by a process that is gone", path.display()),
            Fault::Foreign => write!(f, "{}: nothing of smolvm is called so", path.display()),
            Fault::Damaged(why) => write!(f, "machine {what}: {why}"),
            Fault::Linked => {
                write!(f, "machine {what}: its file has a second name, through which it can change")
            }
            Fault::Writable => write!(f, "machine {what}: its file is not read-only"),
            Fault::NoParent(id) => write!(
                f,
                "machine {what}: it builds on machine {id}, which is not there; `smolvm import` that one's file, \
                 or remove {what}: `smolvm prune`"
            ),
            Fault::NoReference(id) => {
                write!(f, "machine {what}: it is not noted that it needs machine {}", id.short())
            }
            Fault::NameOfNothing(id) => write!(
                f,
                "the name {what:?} is for machine {}, which is not there; `smolvm import` its file brings it back",
                id.short()
            ),
            Fault::DamagedName => {
                write!(f, "{}: it does not say which machine it is a name of", path.display())
            }
            Fault::DamagedRecord => write!(f, "{}: a damaged record of a path", path.display()),
        }
    }
}

impl Store {
    /// Looks at everything in the store, every byte of every object, and with `repair` mends what it can.
    pub fn check(&self, options: CheckOptions<'_>) -> Result<Vec<Finding>> {
        let mut check = Check { store: self, options, found: Vec::new(), damaged: Vec::new() };
        check.leftovers()?;
        check.moves()?;
        check.objects()?;
        // Those of files whose two names were parted.
        check.moves()?;
        check.names()?;
        check.references()?;
        check.records()?;
        Ok(check.found)
    }
}

struct Check<'a> {
    store: &'a Store,
    options: CheckOptions<'a>,
    found: Vec<Finding>,
    /// Objects that are not what they should be: set aside, or they would be.
    damaged: Vec<Digest>,
}

impl Check<'_> {
    fn note(&mut self, path: PathBuf, what: &str, fault: Fault, mended: bool) {
        self.found.push(Finding { path, what: what.to_owned(), fault, mended, aside: None });
    }

    /// Notes a fault and mends it by `mend`.
    fn mend(
        &mut self,
        path: PathBuf,
        what: &str,
        fault: Fault,
        mend: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<()> {
        if self.options.repair {
            mend(&path).map_err(|error| Error::io(&path, "mend it", error))?;
        }
        self.note(path, what, fault, self.options.repair);
        Ok(())
    }

    /// Notes a fault and sets the thing aside.
    fn set_aside(&mut self, path: PathBuf, what: &str, fault: Fault) -> Result<()> {
        let aside = if self.options.repair { Some(self.move_aside(&path)?) } else { None };
        let mended = aside.is_some();
        self.found.push(Finding { path, what: what.to_owned(), fault, mended, aside });
        Ok(())
    }

    fn move_aside(&self, path: &Path) -> Result<PathBuf> {
        let dir = self.store.made_part("damaged")?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let free = |aside: &PathBuf| fs::symlink_metadata(aside).is_err();
        let mut places =
            (0u64..).map(|n| if n == 0 { dir.join(&name) } else { dir.join(format!("{name}.{n}")) });
        let aside = places.find(free).unwrap_or_else(|| dir.join(&name));
        let moved = fs::rename(path, &aside).and_then(|()| sync_dir(&dir));
        let moved = moved.and_then(|()| path.parent().map_or(Ok(()), sync_dir));
        moved.map_err(|error| Error::io(path, "set it aside", error))?;
        Ok(aside)
    }

    fn leftovers(&mut self) -> Result<()> {
        let dir = self.store.part("tmp");
        let left = match leftovers(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            left => left.map_err(|error| Error::io(&dir, "look into it", error))?,
        };
        left.into_iter()
            .try_for_each(|path| self.mend(path, "", Fault::Leftover, |path| fs::remove_file(path)))
    }

    /// Files that were on their way into the store.
    fn moves(&mut self) -> Result<()> {
        for mark in self.store.cut_off_moves()? {
            if !self.found.iter().any(|finding| finding.path == mark.path) {
                self.mend(mark.path.clone(), "", Fault::Leftover, |_| mark.end())?;
            }
        }
        Ok(())
    }

    fn objects(&mut self) -> Result<()> {
        for name in self.store.names_in("objects")? {
            let path = self.store.part("objects").join(&name);
            let Ok(id) = name.parse::<Digest>() else {
                self.set_aside(path, "", Fault::Foreign)?;
                continue;
            };
            self.object(id, path)?;
        }
        let images = self.store.images()?;
        images.iter().try_for_each(|image| self.needs(image, &images))
    }

    fn object(&mut self, id: Digest, path: PathBuf) -> Result<()> {
        let pin = match self.store.pin_quietly(&id) {
            Ok(pin) => pin,
            // Removed since.
            Err(Error::Gone { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let what = self.called(&id);
        let progress =
            |progress| self.options.progress.map_or(ControlFlow::Continue(()), |f| f(&id, progress));
        let verified = pin.open().and_then(|file| {
            file.verify_all(VerifyOptions { threads: 0, progress: Some(&progress) })?;
            Ok(file)
        });
        match verified {
            Ok(file) if file.id() == id => self.kept(&file, what, path),
            Ok(file) => {
                let why = format!("its file is that of machine {}", file.id().short());
                self.damaged.push(id);
                self.set_aside(path, &what, Fault::Damaged(why))
            }
            Err(Error::File(error)) if matches!(error.problem(), Problem::Cancelled) => Err(error.into()),
            Err(Error::File(error)) => {
                self.damaged.push(id);
                self.set_aside(path, &what, Fault::Damaged(error.problem().to_string()))
            }
            Err(error) => Err(error),
        }
    }

    /// A whole object is to stay as it is.
    fn kept(&mut self, file: &MachineFile, what: String, path: PathBuf) -> Result<()> {
        let meta = file.file().metadata().map_err(|error| Error::io(&path, "look at it", error))?;
        if meta.nlink() > 1 {
            let store = self.store;
            let copy = |path: &Path| copy_in_place(store, file, path);
            return self.mend(path, &what, Fault::Linked, copy);
        }
        if meta.mode() & 0o222 != 0 {
            let close = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o400));
            return self.mend(path, &what, Fault::Writable, close);
        }
        Ok(())
    }

    /// Whether what an object builds on is there and knows so.
    fn needs(&mut self, image: &Image, images: &[Image]) -> Result<()> {
        let Some(parent) = image.parent else { return Ok(()) };
        let (path, what) = (self.store.object_path(&image.id), self.called(&image.id));
        if self.damaged.contains(&parent) || !images.iter().any(|other| other.id == parent) {
            self.note(path, &what, Fault::NoParent(parent), false);
        } else if !self.store.is_referred(&parent, &path) {
            let mended = self.options.repair && self.store.mend_reference(image)?;
            self.note(path, &what, Fault::NoReference(parent), mended);
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        for file in self.store.names_in("tags")? {
            let path = self.store.part("tags").join(&file);
            match crate::tags::name_of(&file).map(|name| (self.store.resolve(&name), name)) {
                Some((Ok(Some(tag)), name)) => {
                    if self.damaged.contains(&tag.id) || !self.store.object_path(&tag.id).exists() {
                        self.mend(path, &name, Fault::NameOfNothing(tag.id), |path| fs::remove_file(path))?;
                    }
                }
                // Removed since.
                Some(_) if !path.exists() => {}
                Some((_, name)) => self.set_aside(path, &name, Fault::DamagedName)?,
                None => self.set_aside(path, &file, Fault::DamagedName)?,
            }
        }
        Ok(())
    }

    /// Needs of objects that are gone go with their owners, who may have the object brought back until then.
    fn references(&mut self) -> Result<()> {
        for name in self.store.names_in("refs")? {
            let path = self.store.part("refs").join(&name);
            match name.parse::<Digest>() {
                Ok(id) if self.options.repair && !self.store.object_path(&id).exists() => {
                    self.store.references(&id)?;
                    self.store.drop_references(&id);
                }
                Ok(_) => {}
                Err(_) => self.set_aside(path, "", Fault::Foreign)?,
            }
        }
        Ok(())
    }

    fn records(&mut self) -> Result<()> {
        for name in self.store.names_in("paths")? {
            let path = self.store.part("paths").join(&name);
            if fs::read(&path).is_ok_and(|record| !crate::paths::is_whole(&record)) {
                self.mend(path, "", Fault::DamagedRecord, |path| fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    /// An object's first name, else the beginning of its id.
    fn called(&self, id: &Digest) -> String {
        let tags = self.store.tags().unwrap_or_default();
        tags.into_iter().find(|tag| tag.id == *id).map_or_else(|| id.short(), |tag| tag.name)
    }
}

/// A verified object gets bytes of its own, under the name that it has.
fn copy_in_place(store: &Store, file: &MachineFile, path: &Path) -> io::Result<()> {
    let temp = store.temp_file(0o400).map_err(io::Error::other)?;
    artifact::copy::copy_range((file.file(), 0), (temp.file(), 0), file.len(), |_| Ok(()))?;
    let copy = MachineFile::open(temp.file().try_clone()?, path).map_err(io::Error::other)?;
    // It may be written this very moment.
    copy.verify_all(VerifyOptions::default()).map_err(io::Error::other)?;
    if copy.id() != file.id() || !same_file(file.file(), path)? {
        return Err(io::Error::other("it changed meanwhile"));
    }
    temp.file().sync_all()?;
    let file: File = temp.replace(path)?;
    // The lock said that it was unfinished.
    let _ = file.unlock();
    path.parent().map_or(Ok(()), sync_dir)
}
