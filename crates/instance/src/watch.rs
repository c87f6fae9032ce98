//! Tells what happens to instances, from now on.
//!
//! Problem: there is no daemon that could tell; each machine's own process writes its record, and one that is killed writes
//! nothing. Strategy: inotify(7) tells of new and removed directories and of each record that was replaced, which is then
//! read and compared with the last look ([`crate::changes`]); of each process that a record names the end is waited for by a
//! pidfd. Where notes were lost all is looked at again. Nothing is looked at without a cause, and the lock of an instance,
//! which is how others tell who lives, is tried only at the first look and where its process cannot be seen (another PID
//! namespace): trying it takes it for an instant, and who starts the machine just then would be refused.
//!
//! Invariants: a directory is looked at after its watch is there, so that no record falls in between. An end is told when
//! the process is gone, not when its record says so: who hears of it can start or remove the machine. What follows each
//! other faster than it is read may be told as one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use host::{Interest, Poller, Ready};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use store::Dirs;

use crate::changes::{Change, Look, State, changes};
use crate::error::{Error, io_error};
use crate::record::{Instance, Phase, RECORD, directories};

/// The token of inotify among those of the processes.
const NOTES: u64 = 0;
/// Bytes of notes that are read at once; one has at most 272.
const BATCH: usize = 8192;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The instance's name.
    pub name: String,
    pub change: Change,
}

/// What is known of an instance.
struct Known {
    /// What was told of.
    seen: Look,
    /// Its end, to be told when its process has gone.
    end: Option<Look>,
    process: Option<Process>,
}

/// A process that lived when its record was read.
struct Process {
    pid: u32,
    token: u64,
    fd: OwnedFd,
}

impl Process {
    /// Whether it is gone, with all that it held.
    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}

/// One note of inotify.
struct Note {
    watch: i32,
    flags: ReadFlags,
    file: Option<String>,
}

/// Waits for what happens to instances.
pub struct Watch {
    dirs: Dirs,
    /// Those that are wanted; all when empty.
    names: Vec<String>,
    inotify: OwnedFd,
    poller: Poller,
    /// The watch of the directory that has them all.
    root: i32,
    watched: HashMap<i32, String>,
    known: BTreeMap<String, Known>,
    /// Whose process each token is.
    processes: HashMap<u64, String>,
    next_token: u64,
    /// Whether there may be notes to read.
    noted: bool,
    told: VecDeque<Event>,
}

impl Watch {
    /// Watches the instances of these names, which need not be there yet, or all of them. What happens after this has
    /// returned is told.
    ///
    /// # Errors
    /// [`Error::BadName`], the host's: over a limit of inotify.
    pub fn begin(dirs: &Dirs, names: &[String]) -> Result<Self, Error> {
        if let Some(bad) = names.iter().find(|name| !spec::valid_name(name)) {
            return Err(Error::BadName(bad.clone()));
        }
        let root = dirs.instances();
        store::dirs::ensure_private(&root)?;
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(refused(&root))?;
        let made = Poller::new().and_then(|poller| {
            poller.add(&inotify, NOTES, Interest::READ)?;
            Ok(poller)
        });
        let poller = made.map_err(io_error("wait for changes of", &root))?;
        let kinds = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::ONLYDIR;
        let watch = inotify::add_watch(&inotify, &root, kinds).map_err(refused(&root))?;
        let mut this = Self {
            dirs: dirs.clone(),
            names: names.to_vec(),
            inotify,
            poller,
            root: watch,
            watched: HashMap::new(),
            known: BTreeMap::new(),
            processes: HashMap::new(),
            next_token: NOTES + 1,
            noted: false,
            told: VecDeque::new(),
        };
        this.look_at_all(true)?;
        this.told.clear();
        Ok(this)
    }

    /// The next thing that happens; waits for it.
    ///
    /// # Errors
    /// The host's: over a limit, the instances' directory is gone.
    pub fn next_event(&mut self) -> Result<Event, Error> {
        let mut ready: Vec<Ready> = Vec::new();
        loop {
            if let Some(event) = self.told.pop_front() {
                return Ok(event);
            }
            if self.noted {
                let notes = self.notes()?;
                self.noted = !notes.is_empty();
                notes.into_iter().try_for_each(|note| self.note(note))?;
                continue;
            }
            let waited = self.poller.wait(&mut ready, None);
            waited.map_err(io_error("wait for changes of", &self.dirs.instances()))?;
            for token in ready.iter().map(|ready| ready.token) {
                self.noted |= token == NOTES;
                if let Some(name) = self.processes.get(&token).cloned() {
                    self.look(&name, false)?;
                }
            }
        }
    }

    /// Some of the notes that are there; none when there are none.
    fn notes(&self) -> Result<Vec<Note>, Error> {
        let mut buffer = [MaybeUninit::uninit(); BATCH];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut notes = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => notes.push(Note {
                    watch: event.wd(),
                    flags: event.events(),
                    // What is no text is none of ours.
                    file: event.file_name().and_then(|name| Some(name.to_str().ok()?.to_owned())),
                }),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => return Ok(notes),
                Err(e) => return Err(io_error("read changes of", &self.dirs.instances())(e.into())),
            }
            if reader.is_buffer_empty() {
                return Ok(notes);
            }
        }
    }

    fn note(&mut self, note: Note) -> Result<(), Error> {
        if note.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return self.look_at_all(false);
        }
        let is_over = note.flags.contains(ReadFlags::IGNORED);
        if note.watch == self.root {
            return match note.file {
                _ if is_over => {
                    let gone = io::Error::new(io::ErrorKind::NotFound, "it was removed");
                    Err(io_error("go on watching", &self.dirs.instances())(gone))
                }
                Some(name) if note.flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) => {
                    self.enter(&name, false)
                }
                Some(name) => self.look(&name, false),
                None => Ok(()),
            };
        }
        if is_over {
            self.watched.remove(&note.watch);
            return Ok(());
        }
        match self.watched.get(&note.watch).cloned() {
            Some(name) if note.file.as_deref() == Some(RECORD) => self.look(&name, false),
            _ => Ok(()),
        }
    }

    /// Looks at all that are there and at all that were.
    fn look_at_all(&mut self, first: bool) -> Result<(), Error> {
        self.watched.clear();
        let there: Vec<String> = directories(&self.dirs)?.iter().map(|i| i.name().to_owned()).collect();
        there.iter().try_for_each(|name| self.enter(name, first))?;
        let known: Vec<String> = self.known.keys().cloned().collect();
        known.iter().filter(|name| !there.contains(name)).try_for_each(|name| self.look(name, first))
    }

    /// Watches a directory from now on.
    fn enter(&mut self, name: &str, first: bool) -> Result<(), Error> {
        if !spec::valid_name(name) || !self.is_wanted(name) {
            return Ok(());
        }
        let path = self.dirs.instances().join(name);
        // A record is moved over the last one; that of a copy is one more name of a file.
        let kinds = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.inotify, &path, kinds) {
            Ok(watch) => drop(self.watched.insert(watch, name.to_owned())),
            // It is gone again, or was none.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(refused(&path)(e)),
        }
        self.look(name, first)
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// Compares an instance with what is known of it. `first`: nobody knows whether its record is still so.
    fn look(&mut self, name: &str, first: bool) -> Result<(), Error> {
        if !spec::valid_name(name) || !self.is_wanted(name) {
            return Ok(());
        }
        let instance = Instance::at(&self.dirs, name)?;
        let Ok(record) = instance.record() else {
            // It is being made or removed; or damaged, of which nothing can be told.
            if !instance.path("").is_dir() {
                self.forget(name);
            }
            return Ok(());
        };
        let mut known = self.known.remove(name);
        let mut ended = None;
        if let Some(known) = &mut known {
            ended = known.process.as_ref().filter(|process| process.has_ended()).map(|process| process.pid);
            if ended.is_some() {
                self.release(known.process.take());
                if let Some(end) = known.end.take() {
                    self.tell(name, changes(Some(&known.seen), Some(&end)));
                    known.seen = end;
                }
            }
        }
        // Of a process that ended, and whose record was not written since, nothing more is to be known.
        let is_over = known.as_ref().is_some_and(|known| match ended {
            Some(pid) => pid == record.pid && known.seen.record == record,
            None => known.seen.state == State::Dead && known.seen.record == record,
        });
        let mut process = known.as_mut().and_then(|known| known.process.take());
        let mut lives = false;
        if record.phase == Phase::Running && record.pid != 0 && !is_over {
            let is_another = process.as_ref().is_none_or(|process| process.pid != record.pid);
            if is_another {
                self.release(process.take());
                if !first || instance.is_held() {
                    process = self.follow(name, record.pid)?;
                }
            }
            lives = process.is_some() || instance.is_held();
        }
        let new = Look::new(record, lives);
        let known = match known {
            None => {
                self.tell(name, changes(None, Some(&new)));
                Known { seen: new, end: None, process }
            }
            Some(known) => self.compare(name, known, new, process),
        };
        self.known.insert(name.to_owned(), known);
        Ok(())
    }

    /// What is known after this look at one that was known.
    fn compare(&mut self, name: &str, mut known: Known, new: Look, process: Option<Process>) -> Known {
        let ends = matches!(new.state, State::Frozen | State::Stopped | State::Dead);
        let is_its_own = process.as_ref().is_some_and(|process| process.pid == new.record.pid);
        if known.seen.state == State::Running && ends && is_its_own {
            return Known { end: Some(new), process, ..known };
        }
        if let Some(end) = known.end.take() {
            // The same process runs it again: what it ended with belongs to that.
            known.seen.record.exit_code = end.record.exit_code;
        }
        self.tell(name, changes(Some(&known.seen), Some(&new)));
        Known { seen: new, end: None, process }
    }

    /// Waits for the end of a process from now on; nothing where there is none that could be seen.
    fn follow(&mut self, name: &str, pid: u32) -> Result<Option<Process>, Error> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let token = self.next_token;
        let opened = match pidfd_open(raw, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            other => other.map_err(io::Error::from),
        };
        let added = opened.and_then(|fd| self.poller.add(&fd, token, Interest::READ).map(|()| fd));
        let fd = added.map_err(io_error("wait for the process of", &self.dirs.instances().join(name)))?;
        self.next_token += 1;
        self.processes.insert(token, name.to_owned());
        Ok(Some(Process { pid, token, fd }))
    }

    fn release(&mut self, process: Option<Process>) {
        if let Some(process) = process {
            self.processes.remove(&process.token);
        }
    }

    /// It is not there any more.
    fn forget(&mut self, name: &str) {
        let Some(known) = self.known.remove(name) else { return };
        self.release(known.process);
        if let Some(end) = &known.end {
            self.tell(name, changes(Some(&known.seen), Some(end)));
        }
        self.tell(name, changes(Some(&known.seen), None));
    }

    fn tell(&mut self, name: &str, changes: Vec<Change>) {
        self.told.extend(changes.into_iter().map(|change| Event { name: name.to_owned(), change }));
    }
}

/// Why inotify watches no more.
fn refused(path: &Path) -> impl FnOnce(Errno) -> Error + use<'_> {
    move |error| {
        let limit = match error {
            Errno::NOSPC => "; the limit is fs.inotify.max_user_watches (`sysctl`)",
            Errno::MFILE => "; the limits are fs.inotify.max_user_instances (`sysctl`) and `ulimit -n`",
            _ => "",
        };
        Error::Refused(format!("cannot watch {}: {}{limit}", path.display(), io::Error::from(error)))
    }
}
