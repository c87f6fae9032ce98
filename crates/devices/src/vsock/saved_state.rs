//! What travels of the sockets: not the connections, whose host side stays behind, but their
//! names, so that the guest can be told.

use bus::RestoreError;
use serde::{Deserialize, Serialize};

use super::MAX_CONNECTIONS;
use super::packet::Ports;
use super::table::{FIRST_PORT, RESET_LIMIT, Table};

const VERSION: u32 = 1;
const NAME: &str = "virtio-vsock";

/// Connections that end with the freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// 1.
    pub version: u32,
    pub guest_cid: u64,
    /// (guest port, host port) in the order in which the guest is to hear of their end.
    pub connections: Vec<(u32, u32)>,
    /// Where the host's next connection comes from: not from a port that the guest knows.
    pub next_port: u32,
}

impl VsockState {
    pub(super) fn of(table: &Table) -> Self {
        Self {
            version: VERSION,
            guest_cid: table.guest_cid,
            connections: table.live_ports().iter().map(|p| (p.guest, p.host)).collect(),
            next_port: table.next_port,
        }
    }

    pub(super) fn apply(&self, table: &mut Table) -> Result<(), RestoreError> {
        RestoreError::check_version(NAME, self.version, VERSION)?;
        if self.guest_cid != table.guest_cid {
            let what = format!("its guest was {}, here it is {}", self.guest_cid, table.guest_cid);
            return Err(RestoreError::invalid(NAME, what));
        }
        // A reset that waits may make room for a connection at the same time.
        if self.connections.len() > 2 * MAX_CONNECTIONS + RESET_LIMIT {
            let what = format!("{} connections, {MAX_CONNECTIONS} are possible", self.connections.len());
            return Err(RestoreError::invalid(NAME, what));
        }
        if !(FIRST_PORT..u32::MAX).contains(&self.next_port) {
            return Err(RestoreError::invalid(NAME, format!("next port {:#x}", self.next_port)));
        }
        table.clear();
        table.next_port = self.next_port;
        table.owe_resets(self.connections.iter().map(|&(guest, host)| Ports { guest, host }));
        Ok(())
    }
}
