//! Where the bytes go that a guest writes to a console.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bus::lock;

/// Takes console bytes. Called on a vCPU thread: it must not block for long, and what it keeps
/// must be bounded, for the guest can write for ever.
pub trait Output: Send {
    /// Takes all of `bytes` or drops what does not fit.
    fn write(&mut self, bytes: &[u8]);
}

impl<F: FnMut(&[u8]) + Send> Output for F {
    fn write(&mut self, bytes: &[u8]) {
        self(bytes);
    }
}

/// An output that remembers the last bytes. Clones share them.
#[derive(Clone, Debug)]
pub struct Tail {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    bytes: VecDeque<u8>,
    limit: usize,
    dropped: u64,
}

impl Tail {
    /// Keeps at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { bytes: VecDeque::new(), limit, dropped: 0 })) }
    }

    /// What is kept, oldest first.
    pub fn contents(&self) -> Vec<u8> {
        let inner = lock(&self.inner);
        inner.bytes.iter().copied().collect()
    }

    /// Takes what is kept out.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.inner).bytes).into()
    }

    /// Bytes that had to go to make room.
    pub fn dropped(&self) -> u64 {
        lock(&self.inner).dropped
    }
}

impl Output for Tail {
    fn write(&mut self, bytes: &[u8]) {
        let inner = &mut *lock(&self.inner);
        let skipped = bytes.len().saturating_sub(inner.limit);
        let bytes = &bytes[skipped..];
        let over = (inner.bytes.len() + bytes.len()).saturating_sub(inner.limit);
        inner.bytes.drain(..over);
        inner.bytes.extend(bytes);
        inner.dropped += (skipped + over) as u64;
    }
}
