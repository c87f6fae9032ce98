//! How large the host is.

use rustix::system::sysinfo;

/// Main memory in bytes.
pub fn memory_bytes() -> u64 {
    let info = sysinfo();
    // The unit is 1 where everything fits (sysinfo(2)).
    info.totalram.saturating_mul(info.mem_unit.into())
}
