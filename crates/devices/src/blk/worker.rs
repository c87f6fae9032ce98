//! Executes requests.

use std::io;
use std::sync::{Arc, Mutex};

use bus::{RestoreError, lock};
use disk::Disk;
use virtio::features::kind;
use virtio::{Activation, Chain, ViewError, VirtioDevice};

use super::regs;
use super::request::{Parsed, Request, Status, parse};
use super::saved_state::BlkState;

/// Entries of the queue.
const QUEUE: u16 = 256;
/// Bytes moved at a time: all the host memory that requests take, whatever their number.
const BOUNCE: usize = 128 * 1024;

/// What a disk did so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkStats {
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Requests that ended in an I/O error because the host failed.
    pub host_errors: u64,
    /// The last of them, for the user (a full disk on the host, most likely).
    pub last_error: Option<String>,
}

/// A virtio disk.
pub struct Blk {
    pub(super) disk: Arc<dyn Disk>,
    /// What is behind it may change between a freeze and a restore.
    pub(super) slot: bool,
    id: [u8; 20],
    worker: Mutex<Worker>,
}

#[derive(Default)]
struct Worker {
    world: Option<Activation>,
    bounce: Vec<u8>,
    stats: BlkStats,
    /// The guest knows another size.
    resized: bool,
}

impl Blk {
    /// A disk that names itself `id` (cut to 20 bytes; `/sys/block/vd*/serial` in the guest).
    pub fn new(disk: Arc<dyn Disk>, id: &str) -> Self {
        let mut raw = [0; 20];
        raw.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        Self { disk, slot: false, id: raw, worker: Mutex::default() }
    }

    /// A place for a disk that may come and grow between two runs of a frozen machine; `disk::NoDisk`
    /// leaves it empty. To its driver it is writable whatever is in it: features are negotiated once
    /// and for all (docs/adr/0100), so writes to a disk that is read-only fail one by one.
    pub fn slot(disk: Arc<dyn Disk>, id: &str) -> Self {
        Self { slot: true, ..Self::new(disk, id) }
    }

    /// Whether the driver is told that it may only read.
    pub(super) fn offers_reading_only(&self) -> bool {
        !self.slot && self.disk.is_read_only()
    }

    /// What it did so far.
    pub fn stats(&self) -> BlkStats {
        lock(&self.worker).stats.clone()
    }

    /// Answers one chain; returns how many bytes were written into it.
    fn answer(&self, worker: &mut Worker, world: &Activation, chain: &Chain) -> u32 {
        let Ok(mut parsed) = parse(chain, &world.memory) else { return 0 };
        let done = self.execute(worker, &mut parsed);
        let status = match done {
            Ok(()) => Status::Ok,
            Err(Failure::Status(status)) => status,
            Err(Failure::Host(e)) => {
                worker.stats.host_errors += 1;
                worker.stats.last_error = Some(e.to_string());
                Status::IoError
            }
        };
        if parsed.status.write_all(&[status as u8]).is_err() {
            return 0;
        }
        // The used length counts from the chain's beginning: unless all data is there, none is.
        if parsed.data_out.remaining() == 0 { (parsed.data_out.written() + 1) as u32 } else { 0 }
    }

    fn execute(&self, worker: &mut Worker, parsed: &mut Parsed<'_>) -> Result<(), Failure> {
        match std::mem::replace(&mut parsed.request, Err(Status::Ok))? {
            Request::Read { offset } => self.read(worker, parsed, offset),
            Request::Write { offset } => self.write(worker, parsed, offset),
            Request::Flush => Ok(self.disk.flush()?),
            Request::GetId => Ok(parsed.data_out.write(&self.id).map(drop)?),
            Request::Discard(ranges) => {
                self.check_writable()?;
                ranges.iter().try_for_each(|r| self.within(r.offset, r.len))?;
                Ok(ranges.iter().try_for_each(|r| self.disk.discard(r.offset, r.len))?)
            }
            Request::WriteZeroes(ranges) => {
                self.check_writable()?;
                ranges.iter().try_for_each(|r| self.within(r.offset, r.len))?;
                Ok(ranges.iter().try_for_each(|r| self.disk.write_zeroes(r.offset, r.len))?)
            }
        }
    }

    fn read(&self, worker: &mut Worker, parsed: &mut Parsed<'_>, offset: u64) -> Result<(), Failure> {
        let len = parsed.data_out.remaining();
        self.within(offset, len)?;
        worker.bounce.resize(BOUNCE, 0);
        let mut at = offset;
        while parsed.data_out.remaining() > 0 {
            let piece = &mut worker.bounce[..parsed.data_out.remaining().min(BOUNCE as u64) as usize];
            self.disk.read_at(at, piece)?;
            parsed.data_out.write_all(piece)?;
            at += piece.len() as u64;
        }
        worker.stats.read_bytes += len;
        Ok(())
    }

    fn write(&self, worker: &mut Worker, parsed: &mut Parsed<'_>, offset: u64) -> Result<(), Failure> {
        self.check_writable()?;
        let len = parsed.data_in.remaining();
        self.within(offset, len)?;
        worker.bounce.resize(BOUNCE, 0);
        let mut at = offset;
        while parsed.data_in.remaining() > 0 {
            let piece = &mut worker.bounce[..parsed.data_in.remaining().min(BOUNCE as u64) as usize];
            parsed.data_in.read_exact(piece)?;
            self.disk.write_at(at, piece)?;
            at += piece.len() as u64;
        }
        worker.stats.written_bytes += len;
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.disk.is_read_only() { Err(Failure::Status(Status::IoError)) } else { Ok(()) }
    }

    /// A range that the guest must not ask for is its fault, not the host's.
    fn within(&self, offset: u64, len: u64) -> Result<(), Failure> {
        match offset.checked_add(len) {
            Some(end) if end <= self.disk.size() => Ok(()),
            _ => Err(Failure::Status(Status::IoError)),
        }
    }
}

/// Why a request was not done.
enum Failure {
    Status(Status),
    Host(io::Error),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Host(e)
    }
}

impl From<ViewError> for Failure {
    fn from(_: ViewError) -> Self {
        Self::Status(Status::IoError)
    }
}

impl VirtioDevice for Blk {
    type State = BlkState;

    fn kind(&self) -> u32 {
        kind::BLOCK
    }

    fn features(&self) -> u64 {
        regs::features(self.offers_reading_only())
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::read_bytes(&regs::config(&*self.disk), offset, data);
    }

    fn activate(&self, world: Activation) {
        let mut worker = lock(&self.worker);
        if std::mem::take(&mut worker.resized) {
            world.signal.config_changed();
        }
        worker.world = Some(world);
    }

    fn notify(&self, queue: usize) {
        let worker = &mut *lock(&self.worker);
        let Some(world) = worker.world.take() else { return };
        world.drain(queue, |chain| self.answer(worker, &world, chain));
        worker.world = Some(world);
    }

    fn reset(&self) {
        let worker = &mut *lock(&self.worker);
        worker.world = None;
        worker.bounce = Vec::new();
    }

    fn save(&self) -> BlkState {
        BlkState::of(self)
    }

    fn restore(&self, state: &BlkState) -> Result<(), RestoreError> {
        state.check(self)?;
        lock(&self.worker).resized = state.size != self.disk.size();
        Ok(())
    }
}
