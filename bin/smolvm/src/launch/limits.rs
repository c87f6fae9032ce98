//! What a machine's process may take of its host.

use anyhow::{Context, Result};
use host::Group;
use serde::{Deserialize, Serialize};

use crate::args::Keep;
use crate::ui::say::tell;

/// What a machine takes beside its guest's memory, at most: translations, caches, buffers.
const OWN: u64 = 64 << 20;

/// Limits of a machine; they hold from its start, and at each start again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the host's memory.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Thousandths of a CPU.
    #[serde(default)]
    pub cpu_milli: Option<u32>,
}

impl Limits {
    /// Those that the flags say.
    pub fn of(keep: &Keep) -> Self {
        Self { memory: keep.memory_limit.map(|size| size.0), cpu_milli: keep.cpu_limit }
    }

    /// Says where a guest may use up more than its machine may take: the host ends the machine then.
    pub fn tell_short(&self, guest: u64) {
        if let Some(limit) = self.memory.filter(|limit| *limit < guest.saturating_add(OWN)) {
            let (limit, guest) = (spec::Size(limit), spec::Size(guest));
            tell!(
                "smolvm: --memory-limit {limit}: the guest has {guest} of memory; when it has used up the limit, the \
                 host ends the machine"
            );
        }
    }

    /// Puts this process below them, for as long as the result lives.
    pub fn enter(&self, name: &str) -> Result<Option<Group>> {
        let limits = host::Limits { memory: self.memory, cpu_milli: self.cpu_milli };
        if limits == host::Limits::default() {
            return Ok(None);
        }
        let entered = host::enter(name, limits);
        let group = entered.context(
            "limiting the machine: this user can make no control group here; start smolvm in one that has the limit \
             (`systemd-run --user --scope -p MemoryMax=600M -p CPUQuota=50% smolvm run …`) instead of --memory-limit and \
             --cpu-limit",
        );
        group.map(Some)
    }
}
