//! Memory that is copied while it is written, by a machine that is made up: its vCPUs write at a given rate, seen by the
//! log alone, and its devices through the gate.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use artifact::{MachineFile, MachineFileWriter, PageSet};
use guestmem::{GuestMemory, PAGE_SIZE};
use snapshot::{AheadStats, CopyAhead, Origin, Pages, Running, StillMemory, map_memory, write_memory};

const SIZE: u64 = 128 << 20;
const PAGES: u64 = SIZE / PAGE_SIZE;

/// A machine that writes `rate` pages of its first `set` while a round lasts, and less when it is slowed down.
struct Fake {
    memory: GuestMemory,
    /// What its memory holds, by its own account.
    model: GuestMemory,
    /// This process's memory, for writes that nobody sees.
    unseen: File,
    log: RefCell<PageSet>,
    /// All that was ever in the log.
    logged: RefCell<PageSet>,
    set: u64,
    rate: u64,
    /// Pages that a device writes in a round.
    device: u64,
    turn: Cell<u64>,
    stands: Cell<bool>,
    slowed: Cell<u8>,
    most_slowed: Cell<u8>,
    stood: Cell<u32>,
    fails: Cell<bool>,
}

impl Fake {
    fn new(set: u64, rate: u64, device: u64) -> Self {
        let fake = Self {
            memory: GuestMemory::new(SIZE).unwrap(),
            model: GuestMemory::new(SIZE).unwrap(),
            unseen: File::options().write(true).open("/proc/self/mem").unwrap(),
            log: RefCell::new(PageSet::new(PAGES)),
            logged: RefCell::new(PageSet::new(PAGES)),
            set,
            rate,
            device,
            turn: Cell::default(),
            stands: Cell::default(),
            slowed: Cell::default(),
            most_slowed: Cell::default(),
            stood: Cell::default(),
            fails: Cell::default(),
        };
        // Before: every second page of the first half, by the boot loader.
        (0..PAGES / 2).step_by(2).for_each(|page| fake.write(page, 1));
        fake
    }

    fn write(&self, page: u64, byte: u8) {
        for memory in [&self.memory, &self.model] {
            memory.write(page * PAGE_SIZE, &[byte; PAGE_SIZE as usize]).unwrap();
        }
    }

    /// As KVM lets a vCPU write: no gate, but the log.
    fn write_logged(&self, page: u64, byte: u8) {
        let address = self.memory.place() as u64 + page * PAGE_SIZE;
        self.unseen.write_all_at(&[byte; PAGE_SIZE as usize], address).unwrap();
        self.model.write(page * PAGE_SIZE, &[byte; PAGE_SIZE as usize]).unwrap();
        self.log.borrow_mut().insert(page);
        self.logged.borrow_mut().insert(page);
    }

    /// What happens in a round.
    fn work(&self) {
        let turn = self.turn.get() + 1;
        self.turn.set(turn);
        let pages = self.rate * u64::from(100 - self.slowed.get()) / 100;
        // Page by page, each written again in the next round, and every tenth time zeros.
        let byte = if turn.is_multiple_of(10) { 0 } else { turn as u8 };
        (0..pages).for_each(|i| self.write_logged((turn * 7 + i) % self.set, byte));
        (0..self.device).for_each(|i| self.write(PAGES / 2 + i, turn as u8));
    }
}

impl Running for Fake {
    fn take_written(&self, words: &mut [u64]) -> io::Result<()> {
        if self.fails.get() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.stands.get() {
            self.work();
        }
        let log = self.log.replace(PageSet::new(PAGES));
        words.iter_mut().zip(log.words()).for_each(|(word, more)| *word |= more);
        // What is written after the list was taken is in the next one.
        if !self.stands.get() {
            self.write_logged(self.turn.get() % self.set, 77);
        }
        Ok(())
    }

    fn stand(&self, act: &mut dyn FnMut()) -> io::Result<()> {
        self.stood.set(self.stood.get() + 1);
        act();
        Ok(())
    }

    fn slow_down(&self, percent: u8) {
        self.slowed.set(percent);
        self.most_slowed.set(self.most_slowed.get().max(percent));
    }
}

fn begin(fake: &Fake) -> CopyAhead {
    CopyAhead::begin(&fake.memory, fake, &PageSet::new(PAGES), &std::env::temp_dir()).unwrap()
}

/// Writes a little more and takes the instant.
fn instant(
    copy: CopyAhead,
    fake: &Fake,
    origin: &PageSet,
    files: Option<GuestMemory>,
) -> (StillMemory, AheadStats) {
    (0..100).for_each(|page| fake.write_logged(page, 33));
    (0..5).for_each(|i| fake.write(PAGES / 2 + i, 44));
    fake.stands.set(true);
    let taken = copy.finish(fake, origin, files).unwrap();
    fake.stands.set(false);
    taken
}

/// Takes the instant; what it is is the model as of now. The machine then goes on.
fn finish(copy: CopyAhead, fake: &Fake) -> (StillMemory, AheadStats, GuestMemory) {
    let (still, stats) = instant(copy, fake, &PageSet::new(PAGES), None);
    let model = GuestMemory::new(SIZE).unwrap();
    let mut page = [0; PAGE_SIZE as usize];
    for number in 0..PAGES {
        fake.model.read_page(number as usize, &mut page);
        model.write(number * PAGE_SIZE, &page).unwrap();
    }
    (0..PAGES).step_by(3).for_each(|page| fake.write(page, 200));
    (still, stats, model)
}

fn assert_same(still: &StillMemory, model: &GuestMemory) {
    let (mut is, mut wanted) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
    for page in 0..PAGES as usize {
        model.read_page(page, &mut wanted);
        assert_eq!(still.is_zero(page).unwrap(), wanted.iter().all(|byte| *byte == 0), "page {page}");
        still.peek_page(page, &mut is).unwrap();
        assert!(is == wanted, "page {page}: {} instead of {}", is[0], wanted[0]);
    }
}

/// Copies a machine; what it took. The instant must be whole, and guest memory know afterwards what was written.
fn copied(fake: &Fake) -> AheadStats {
    let mut copy = begin(fake);
    copy.rounds(fake).unwrap();
    // As after the guest's tasks were brought to rest.
    copy.rounds(fake).unwrap();
    let (still, stats, model) = finish(copy, fake);
    assert_same(&still, &model);
    let logged = fake.logged.borrow();
    assert!((0..PAGES).filter(|page| logged.contains(*page)).all(|page| fake.memory.is_dirty(page as usize)));
    assert_eq!(fake.slowed.get(), 0, "it goes on at its full speed");
    stats
}

#[test]
fn a_machine_that_writes_little_is_copied_in_a_round() {
    let fake = Fake::new(500, 300, 10);
    let stats = copied(&fake);
    assert!(stats.rounds == 1 && !stats.gave_up && stats.slowed_percent == 0, "{stats:?}");
    assert!(stats.copied_pages >= PAGES / 4 && stats.last_pages < 1500, "{stats:?}");
    assert_eq!(fake.stood.get(), 1);
}

#[test]
fn a_machine_that_writes_faster_is_slowed_down_until_little_is_left() {
    // At full speed 10,000 pages are written in a round, whatever is copied; slowed down by 80 percent 2,000.
    let fake = Fake::new(12_000, 10_000, 0);
    let stats = copied(&fake);
    assert_eq!((stats.gave_up, stats.slowed_percent, fake.most_slowed.get()), (false, 80, 80), "{stats:?}");
    assert!(stats.last_pages < 2048 + 200, "{stats:?}");
}

#[test]
fn a_machine_that_writes_too_fast_is_copied_at_the_instant_and_that_is_said() {
    // Even at a twentieth of its speed more than may be left.
    let fake = Fake::new(PAGES, 100_000, 0);
    let stats = copied(&fake);
    assert_eq!((stats.gave_up, stats.slowed_percent), (true, 95), "{stats:?}");
    assert!(stats.last_pages > 4096, "more than what memory is kept ready for: {stats:?}");
}

#[test]
fn what_devices_write_is_copied_again_while_they_stand_still() {
    let fake = Fake::new(100, 50, 1800);
    let stats = copied(&fake);
    assert!(!stats.gave_up, "{stats:?}");
    assert!(fake.stood.get() > 1, "their pages are many, so they stood still for them");
}

#[test]
fn the_copy_becomes_a_file_and_what_nobody_wrote_comes_from_there_the_next_time() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(700, 300, 20);
    let mut copy = begin(&fake);
    copy.rounds(&fake).unwrap();
    let (still, _, model) = finish(copy, &fake);
    let path = dir.path().join("x");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    write_memory(&mut writer, still, Pages::All, None).unwrap();
    writer.finish().unwrap();
    // Brought back, written over, and copied again: what nobody wrote comes from the file.
    let file = MachineFile::open_path(&path).unwrap();
    let next = Fake { memory: GuestMemory::new(SIZE).unwrap(), model, ..Fake::new(400, 200, 5) };
    let origin = map_memory(&file, None, &next.memory).unwrap();
    next.memory.regions();
    let files = GuestMemory::new(SIZE).unwrap();
    map_memory(&file, None, &files).unwrap();
    let mut copy = begin(&next);
    copy.rounds(&next).unwrap();
    let (still, stats) = instant(copy, &next, &origin.parent.pages(), Some(files));
    assert!(stats.copied_pages + stats.last_pages < 3000, "only what was written: {stats:?}");
    assert_same(&still, &next.model);
    let Origin { parent, .. } = origin;
    let path = dir.path().join("y");
    let mut writer = MachineFileWriter::create(&path).unwrap();
    let changes = Pages::Changes { parent: &parent.pages(), above: &PageSet::new(PAGES) };
    let written = write_memory(&mut writer, still, changes, None).unwrap();
    assert!(written.nonzero_pages < 3000, "{written:?}");
    writer.finish().unwrap();
    let back = GuestMemory::new(SIZE).unwrap();
    map_memory(&MachineFile::open_path(&path).unwrap(), Some(&file), &back).unwrap();
    let (mut is, mut wanted) = ([0; PAGE_SIZE as usize], [0; PAGE_SIZE as usize]);
    for page in 0..PAGES as usize {
        back.read_page(page, &mut is);
        next.model.read_page(page, &mut wanted);
        assert!(is == wanted, "page {page}");
    }
}

#[test]
fn what_fails_leaves_the_memory_free_and_the_machine_fast() {
    let fake = Fake::new(5000, 4000, 0);
    let mut copy = begin(&fake);
    assert!(CopyAhead::begin(&fake.memory, &fake, &PageSet::new(PAGES), &std::env::temp_dir()).is_err());
    fake.fails.set(true);
    assert_eq!(copy.rounds(&fake).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(fake.slowed.get(), 0);
    drop(copy);
    fake.fails.set(false);
    assert!(begin(&fake).bytes() > 0);
    let missing = CopyAhead::begin(&fake.memory, &fake, &PageSet::new(PAGES), "/no/such/dir".as_ref());
    assert_eq!(missing.err().unwrap().kind(), io::ErrorKind::NotFound);
}
