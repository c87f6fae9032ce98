//! What a machine costs this host, measured from inside its process.

use guestmem::PAGE_SIZE;
use serde::{Deserialize, Serialize};

use crate::Machine;

/// A look at what the machine used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub vcpus: u32,
    /// CPU time of the vCPUs in milliseconds.
    pub vcpu_ms: u64,
    /// CPU time of its whole process in milliseconds.
    pub cpu_ms: u64,
    /// Bytes of memory that the guest has.
    pub memory: u64,
    /// Bytes of them that were written since it was booted or resumed (on kvm as of its last snapshot).
    pub touched: u64,
    /// Bytes of the host's memory that exist for this machine alone: pages that it wrote, and what is ours.
    pub own: u64,
    /// Bytes resident that it shares with others: pages of machine files and of this program.
    pub shared: u64,
    /// Bytes that the guest freed and the host got back, in all.
    pub returned: u64,
    /// Bytes of its memory that the guest gave up because it was asked to ([`Machine::balloon`]).
    #[serde(default)]
    pub ballooned: u64,
    /// Bytes of disk that were written or zeroed.
    pub disk: u64,
    /// Of a machine that is limited: what it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limited>,
    /// Bytes from the guest's network and to it, where it has one.
    pub net: Option<(u64, u64)>,
}

/// Limits of the machine's process on this host, and what counts against them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limited {
    /// The most bytes of memory.
    pub memory: Option<u64>,
    /// Bytes that count: the machine's own, and what the kernel keeps for it.
    pub memory_used: u64,
    /// The most CPU time, in thousandths of one CPU.
    pub cpu_milli: Option<u32>,
    /// Milliseconds that its threads waited because they had used theirs up.
    pub throttled_ms: u64,
}

impl From<host::GroupUsage> for Limited {
    fn from(group: host::GroupUsage) -> Self {
        Self {
            memory: group.limits.memory,
            memory_used: group.memory,
            cpu_milli: group.limits.cpu_milli,
            throttled_ms: group.throttled_ms,
        }
    }
}

impl Machine {
    /// Measures. The machine is taken to be the only one in this process.
    pub fn usage(&self) -> Usage {
        let process = host::usage("vcpu");
        let drift = self.drift();
        Usage {
            vcpus: self.vcpus.len() as u32,
            vcpu_ms: process.named_ms,
            cpu_ms: process.cpu_ms,
            memory: self.memory.size(),
            touched: drift.dirty_pages * PAGE_SIZE,
            own: process.own,
            shared: process.shared,
            returned: self.devices.balloon.as_ref().map_or(0, |balloon| balloon.returned()),
            ballooned: self.ballooned(),
            disk: drift.disk_bytes,
            limits: host::group_usage().map(Limited::from),
            net: self.network().map(|report| (report.bytes_out, report.bytes_in)),
        }
    }
}
