//! What outsiders may know: refused flows, counters. Shared with whoever asks.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::policy::Reason;

/// Refusals kept; the oldest give way. The same refusal again only counts.
const KEPT: usize = 256;

/// One refused destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Milliseconds since the Unix epoch, of the last time.
    pub last_ms: u64,
    pub count: u64,
    /// `tcp`, `udp`, `icmp` or `dns`.
    pub protocol: String,
    /// Address and port as the host sees them, or the name asked for.
    pub to: String,
    pub reason: Reason,
}

/// A look at a machine's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    /// Oldest first.
    pub refused: Vec<Refused>,
    /// Refusals that gave way to later ones.
    pub dropped: u64,
    pub flows: u64,
    /// Frames and bytes from the guest and to it.
    pub frames_out: u64,
    pub bytes_out: u64,
    pub frames_in: u64,
    pub bytes_in: u64,
}

#[derive(Default)]
struct Shared {
    refused: Mutex<(VecDeque<Refused>, u64)>,
    flows: AtomicU64,
    frames_out: AtomicU64,
    bytes_out: AtomicU64,
    frames_in: AtomicU64,
    bytes_in: AtomicU64,
}

/// Hands reports out; cheap to clone.
#[derive(Clone, Default)]
pub struct Reporter(Arc<Shared>);

impl Reporter {
    /// As things stand.
    pub fn report(&self) -> NetReport {
        let (refused, dropped) = {
            let kept = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
            (kept.0.iter().cloned().collect(), kept.1)
        };
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        NetReport {
            refused,
            dropped,
            flows: get(&self.0.flows),
            frames_out: get(&self.0.frames_out),
            bytes_out: get(&self.0.bytes_out),
            frames_in: get(&self.0.frames_in),
            bytes_in: get(&self.0.bytes_in),
        }
    }

    pub(crate) fn refuse(&self, protocol: &str, to: String, reason: Reason) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut kept = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |r: &&mut Refused| r.protocol == protocol && r.to == to && r.reason == reason;
        if let Some(known) = kept.0.iter_mut().find(same) {
            known.count += 1;
            known.last_ms = now;
            return;
        }
        if kept.0.len() >= KEPT {
            kept.0.pop_front();
            kept.1 += 1;
        }
        kept.0.push_back(Refused { last_ms: now, count: 1, protocol: protocol.into(), to, reason });
    }

    pub(crate) fn refuse_address(&self, protocol: &str, to: SocketAddr, reason: Reason) {
        self.refuse(protocol, to.to_string(), reason);
    }

    pub(crate) fn set_flows(&self, flows: usize) {
        self.0.flows.store(flows as u64, Ordering::Relaxed);
    }

    /// A frame came from the guest. One thread counts, so there is nothing to contend for.
    pub(crate) fn count_out(&self, bytes: usize) {
        self.0.frames_out.fetch_add(1, Ordering::Relaxed);
        self.0.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A frame went to the guest.
    pub fn count_in(&self, bytes: usize) {
        self.0.frames_in.fetch_add(1, Ordering::Relaxed);
        self.0.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
