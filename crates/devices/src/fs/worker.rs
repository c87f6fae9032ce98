//! Carries requests to the server and replies back.

use std::sync::Mutex;

use bus::{RestoreError, lock};
use hostfs::{Folder, Ids, MAX_REQUEST, Placed, Reply, Server};
use virtio::features::kind;
use virtio::{Activation, Chain, VirtioDevice};

use super::saved_state::{FsState, NAME, VERSION};

/// What the guest mounts the device by (`agent_protocol::FOLDERS`).
pub const TAG: &str = "smolvm";
/// Entries of each queue: the first for what must not wait (FORGET), the second for requests. Linux takes a page for
/// each entry but four: a request moves at most 1008 KiB.
const QUEUES: [u16; 2] = [64, 256];
/// Bytes of struct virtio_fs_config: the tag, and how many request queues there are.
const CONFIG: usize = 40;

/// A virtio file system.
pub struct Fs {
    worker: Mutex<Worker>,
}

struct Worker {
    world: Option<Activation>,
    server: Server,
    request: Vec<u8>,
    reply: Reply,
}

impl Fs {
    /// A device that serves `folders`.
    pub fn new(folders: Vec<Folder>) -> Self {
        let server = Server::new(folders, Ids::own());
        let worker = Worker { world: None, server, request: Vec::new(), reply: Reply::default() };
        Self { worker: Mutex::new(worker) }
    }

    /// The folders that the guest can mount.
    pub fn placed(&self) -> Vec<Placed> {
        lock(&self.worker).server.placed()
    }

    /// Where in the guest folders were that are not there any more.
    pub fn missing(&self) -> Vec<String> {
        lock(&self.worker).server.missing().into_iter().map(str::to_owned).collect()
    }
}

impl Worker {
    /// Answers one chain; returns how many bytes were written into it. A chain that cannot be read or has no room is
    /// given back as it is.
    fn answer(&mut self, world: &Activation, chain: &Chain) -> u32 {
        let mut readable = chain.readable(&world.memory);
        let mut writable = chain.writable(&world.memory);
        let Ok(len @ 0..=MAX_REQUEST) = usize::try_from(readable.remaining()) else { return 0 };
        self.request.resize(len, 0);
        if readable.read_exact(&mut self.request).is_err() {
            return 0;
        }
        let room = usize::try_from(writable.remaining()).unwrap_or(usize::MAX);
        self.server.answer(&self.request, room, &mut self.reply);
        match writable.write_all(self.reply.bytes()) {
            Ok(()) => writable.written() as u32,
            Err(_) => 0,
        }
    }
}

impl VirtioDevice for Fs {
    type State = FsState;

    fn kind(&self) -> u32 {
        kind::FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut raw = [0; CONFIG];
        raw[..TAG.len()].copy_from_slice(TAG.as_bytes());
        raw[36..].copy_from_slice(&1u32.to_le_bytes());
        crate::read_bytes(&raw, offset, data);
    }

    fn activate(&self, world: Activation) {
        lock(&self.worker).world = Some(world);
    }

    fn notify(&self, queue: usize) {
        let worker = &mut *lock(&self.worker);
        let Some(world) = worker.world.take() else { return };
        world.drain(queue, |chain| worker.answer(&world, chain));
        worker.world = Some(world);
    }

    fn reset(&self) {
        let worker = &mut *lock(&self.worker);
        worker.world = None;
        worker.server.reset();
        (worker.request, worker.reply) = (Vec::new(), Reply::default());
    }

    fn save(&self) -> FsState {
        FsState { version: VERSION, session: lock(&self.worker).server.save() }
    }

    fn restore(&self, state: &FsState) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, state.version, VERSION)?;
        let restored = lock(&self.worker).server.restore(&state.session);
        restored.map_err(|what| RestoreError::invalid(NAME, what))
    }
}
