//! Copying a running machine's memory ahead of the instant, where its writes pass no gate (KVM).
//!
//! Problem: a snapshot holds one instant, and what a vCPU overwrites under KVM cannot be kept as [`crate::StillMemory`]
//! does it, because nobody is asked before. Standing still until all is written takes as long as there are pages.
//!
//! Strategy: the pages are copied into a file without a name while the machine runs, in rounds (`rounds.rs`), each of
//! the pages that were written since the list of the round before was taken. The last ones are copied at the instant,
//! into memory that is there already: a file may make its writer wait. Then the machine goes on, and the copy is what
//! the snapshot is written from. Pages that a file was mapped for and nobody wrote are in that file: they are not copied.
//!
//! Invariants: a page is copied after it was taken from the list, so that a write during the copy lists it again.
//! The vCPUs' list is the engine's log. Devices pass guestmem's gate *before* they write, so a page that they were
//! let through for is copied when they stand still, or after that.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use artifact::PageSet;
use artifact::temp::{TempFile, TempStyle};
use guestmem::{GuestMemory, MMIO_HOLE_END, MMIO_HOLE_START, PAGE_SIZE, WriteObserver};
use serde::Serialize;

use crate::rounds::{LEFT_FOR_THE_INSTANT, Next, Rounds};
use crate::still::StillMemory;

const PAGE: usize = PAGE_SIZE as usize;
/// Pages that are copied with one write: those of a [`PageSet`]'s word.
const AT_ONCE: u64 = 64;
/// Pages of the instant that memory is kept ready for: those that may be left, and as many that are written between the
/// last look and the instant. More go to the file.
const READY: u64 = 2 * LEFT_FOR_THE_INSTANT;

/// The machine whose memory is copied, which runs.
pub trait Running {
    /// Adds what its vCPUs wrote since the last call: as [`hv::Partition::take_written`].
    ///
    /// # Errors
    /// The engine's.
    fn take_written(&self, words: &mut [u64]) -> io::Result<()>;

    /// Calls `act` while vCPUs and devices stand still for a moment.
    ///
    /// # Errors
    /// The machine has ended.
    fn stand(&self, act: &mut dyn FnMut()) -> io::Result<()>;

    /// From now on its vCPUs stand still for this share of the time, percent.
    fn slow_down(&self, percent: u8);
}

/// What copying ahead took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AheadStats {
    pub rounds: u32,
    /// Pages copied while it ran; one that was written again counts again.
    pub copied_pages: u64,
    /// Pages copied at the instant.
    pub last_pages: u64,
    /// The largest share of the time, in percent, for which its vCPUs were made to stand still meanwhile.
    pub slowed_percent: u8,
    /// The machine wrote as fast as was copied: what was left was copied while it stood still, however much it was.
    pub gave_up: bool,
}

/// See the module.
pub struct CopyAhead {
    memory: GuestMemory,
    seen: Seen,
    image: Image,
    /// Copied next.
    todo: PageSet,
    /// Room for the pages of the instant.
    ready: Vec<u8>,
    stats: AheadStats,
}

/// What is written meanwhile. Guest memory gets it all back when this goes.
struct Seen {
    memory: GuestMemory,
    let_through: Arc<LetThrough>,
    /// All that the engine's log ever said.
    logged: PageSet,
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.memory.release();
        self.memory.mark_dirty_bits(self.logged.words());
    }
}

/// Pages that the gate let somebody through for.
struct LetThrough(Vec<AtomicU64>);

impl LetThrough {
    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }

    fn add_to(&self, pages: &mut PageSet) {
        let words = self.0.iter().map(|word| word.load(Ordering::Acquire)).collect();
        pages.unite(&PageSet::from_words(words, pages.bound()));
    }

    fn forget(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

impl WriteObserver for LetThrough {
    fn before_first_write(&self, _: &GuestMemory, page: usize) {
        if let Some(word) = self.0.get(page / 64) {
            word.fetch_or(1 << (page % 64), Ordering::AcqRel);
        }
    }
}

/// Pages in a sparse file, each at its own place. A page that is not stored is zeros.
struct Image {
    file: TempFile,
    stored: PageSet,
}

impl Image {
    fn new(memory: &GuestMemory, dir: &Path) -> io::Result<Self> {
        let file = TempFile::create_in(dir, 0o600, TempStyle::Auto)?;
        file.file().set_len(memory.size())?;
        Ok(Self { file, stored: PageSet::new(memory.page_count() as u64) })
    }

    /// Puts pages in their places, from `first` on.
    fn put(&mut self, first: u64, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let (pages, _) = bytes.as_chunks::<PAGE>();
        let mut run: Option<(u64, &[u8])> = None;
        let end = pages.len();
        for at in 0..=end {
            let number = first + at as u64;
            let wanted = pages.get(at).is_some_and(|page| {
                // Zeros hide what was stored before.
                self.stored.contains(number) || page.iter().any(|byte| *byte != 0)
            });
            match (run, wanted) {
                (None, true) => run = Some((number, &bytes[at * PAGE..])),
                (Some((start, from)), false) => {
                    let pages = number - start;
                    self.file.file().write_all_at(&from[..pages as usize * PAGE], start * PAGE_SIZE)?;
                    self.stored.insert_run(start, pages);
                    run = None;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The file as memory of its own.
    fn view(&self, memory: &GuestMemory) -> io::Result<GuestMemory> {
        let view = GuestMemory::new(memory.size())?;
        let low = memory.size().min(MMIO_HOLE_START);
        let high = (memory.size() > low).then(|| (MMIO_HOLE_END, memory.size() - low, low));
        view.map_file_later(self.file.file(), [(0, low, 0)].into_iter().chain(high))?;
        Ok(view)
    }
}

impl CopyAhead {
    /// Begins, while `running` stands still for a moment. `mapped`: pages that files were mapped for and that have to be
    /// copied nevertheless. The copy lies in a nameless file in `dir`.
    ///
    /// # Errors
    /// The host's; `ResourceBusy` when an instant of this memory is being read already.
    pub fn begin(
        memory: &GuestMemory,
        running: &dyn Running,
        mapped: &PageSet,
        dir: &Path,
    ) -> io::Result<Self> {
        let count = memory.page_count() as u64;
        let image = Image::new(memory, dir)?;
        let mut words = vec![0; count.div_ceil(64) as usize];
        let let_through = Arc::new(LetThrough(words.iter().map(|_| AtomicU64::new(0)).collect()));
        let ready = vec![1; READY.min(count) as usize * PAGE];
        let mut held = Ok(());
        running.stand(&mut || held = memory.hold(let_through.clone()).map_err(drop))?;
        held.map_err(|()| io::ErrorKind::ResourceBusy)?;
        let logged = PageSet::new(count);
        let mut seen = Seen { memory: memory.clone(), let_through, logged };
        running.take_written(&mut words)?;
        seen.logged = PageSet::from_words(words, count);
        // What was written before; what is written from here on is logged or let through.
        let mut todo = PageSet::from_words(memory.dirty_bits(), count);
        todo.unite(&seen.logged);
        todo.unite(mapped);
        Ok(Self { memory: memory.clone(), seen, image, todo, ready, stats: AheadStats::default() })
    }

    /// Bytes that the copy takes at most so far.
    pub fn bytes(&self) -> u64 {
        self.todo.count() * PAGE_SIZE
    }

    /// Copies in rounds until little is left, or until the machine cannot be slowed down any more.
    ///
    /// # Errors
    /// The engine's; the host's, with the copy lost.
    pub fn rounds(&mut self, running: &dyn Running) -> io::Result<()> {
        let ended = self.copy_in_rounds(running);
        running.slow_down(0);
        ended
    }

    fn copy_in_rounds(&mut self, running: &dyn Running) -> io::Result<()> {
        let mut rounds = Rounds::default();
        loop {
            self.look(running)?;
            match rounds.next(self.todo.count() + self.seen.let_through.count()) {
                Next::Done => return Ok(()),
                Next::GiveUp => {
                    self.stats.gave_up = true;
                    return Ok(());
                }
                Next::Copy { slowed } => {
                    running.slow_down(slowed);
                    self.stats.slowed_percent = self.stats.slowed_percent.max(slowed);
                    self.stats.rounds += 1;
                    self.copy()?;
                }
            }
        }
    }

    /// Lists what was written since the last look.
    fn look(&mut self, running: &dyn Running) -> io::Result<()> {
        let count = self.todo.bound();
        let mut words = vec![0; self.todo.words().len()];
        running.take_written(&mut words)?;
        let written = PageSet::from_words(words, count);
        self.todo.unite(&written);
        self.seen.logged.unite(&written);
        // A device may be on its way from the gate to the page, so its pages wait for the instant; where they are
        // many, for a moment in which it stands still.
        let Seen { memory, let_through, .. } = &self.seen;
        if let_through.count() > LEFT_FOR_THE_INSTANT / 2 {
            let todo = &mut self.todo;
            running.stand(&mut || {
                let_through.add_to(todo);
                let_through.forget();
                memory.release();
                // Nobody else observes: this one did until now.
                let _ = memory.hold(let_through.clone());
            })?;
        }
        Ok(())
    }

    /// Copies what is listed.
    fn copy(&mut self) -> io::Result<()> {
        let todo = std::mem::replace(&mut self.todo, PageSet::new(self.image.stored.bound()));
        let mut buffer = vec![0; AT_ONCE as usize * PAGE];
        for (first, pages) in todo.runs() {
            for at in (first..first + pages).step_by(AT_ONCE as usize) {
                let bytes = &mut buffer[..(first + pages - at).min(AT_ONCE) as usize * PAGE];
                read(&self.memory, at, bytes);
                self.image.put(at, bytes)?;
            }
            self.stats.copied_pages += pages;
        }
        Ok(())
    }

    /// The instant: vCPUs and devices stand still, and may go on when this returns. `origin`: the pages that were mapped
    /// from files; `files`: memory with these and nothing else, where they were not copied.
    ///
    /// # Errors
    /// The engine's; the host's.
    pub fn finish(
        mut self,
        running: &dyn Running,
        origin: &PageSet,
        files: Option<GuestMemory>,
    ) -> io::Result<(StillMemory, AheadStats)> {
        let mut words = vec![0; self.todo.words().len()];
        running.take_written(&mut words)?;
        self.seen.logged.unite(&PageSet::from_words(words.clone(), self.todo.bound()));
        self.todo.unite(&PageSet::from_words(words, self.todo.bound()));
        self.seen.let_through.add_to(&mut self.todo);
        let mut last = Last { pages: PageSet::new(self.todo.bound()), starts: Vec::new(), bytes: self.ready };
        let mut used = 0;
        for (first, pages) in self.todo.runs() {
            self.stats.last_pages += pages;
            let (start, len) = (used, pages as usize * PAGE);
            if let Some(bytes) = last.bytes.get_mut(start..start + len) {
                read(&self.memory, first, bytes);
                last.pages.insert_run(first, pages);
                last.starts.push((first, start));
                used += len;
                continue;
            }
            let mut page = [0; PAGE];
            for number in first..first + pages {
                self.memory.read_page(number as usize, &mut page);
                self.image.put(number, &page)?;
            }
        }
        let mut dirty = PageSet::from_words(self.memory.dirty_bits(), self.todo.bound());
        dirty.unite(&self.seen.logged);
        drop(self.seen);
        let view = self.image.view(&self.memory)?;
        let copied = Copied { view, image: self.image, last, files };
        Ok((StillMemory::copied(copied, dirty, origin), self.stats))
    }
}

/// Reads consecutive pages.
fn read(memory: &GuestMemory, first: u64, bytes: &mut [u8]) {
    for (number, page) in (first as usize..).zip(bytes.as_chunks_mut::<PAGE>().0) {
        memory.read_page(number, page);
    }
}

/// The pages of the instant itself.
struct Last {
    pages: PageSet,
    /// The first page of each run and where in `bytes` it begins, ascending.
    starts: Vec<(u64, usize)>,
    bytes: Vec<u8>,
}

impl Last {
    fn page(&self, page: u64) -> Option<&[u8]> {
        let after = self.starts.partition_point(|(first, _)| *first <= page);
        let (first, start) = self.starts.get(after.checked_sub(1)?)?;
        let at = start + (page - first) as usize * PAGE;
        self.pages.contains(page).then(|| self.bytes.get(at..at + PAGE)).flatten()
    }
}

/// Memory that was copied.
pub(crate) struct Copied {
    view: GuestMemory,
    image: Image,
    last: Last,
    files: Option<GuestMemory>,
}

impl Copied {
    /// A page's bytes. `written`: whether it is none of those that are in the files.
    pub(crate) fn page(&self, page: usize, written: bool, to: &mut [u8; PAGE]) {
        match (self.last.page(page as u64), &self.files) {
            (Some(bytes), _) => to.copy_from_slice(bytes),
            (None, Some(files)) if !written => files.read_page(page, to),
            _ if self.image.stored.contains(page as u64) => self.view.read_page(page, to),
            _ => to.fill(0),
        }
    }

    /// Pages that the memory has.
    pub(crate) fn page_count(&self) -> usize {
        self.view.page_count()
    }
}
