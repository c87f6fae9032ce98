//! The host's operating system behind names that do not change between hosts: mappings, events,
//! timers, vCPU kick, code memory. `sys/{linux,macos}/` hold the same file names. `shared` is the host's
//! processor instead: single accesses to memory that others change.

pub mod shared;
pub mod sys;

pub use sys::capacity::memory_bytes;
pub use sys::cgroup::{Group, GroupUsage, Limits, can_limit, enter, group_usage, sweep};
pub use sys::code_memory::CodeMemory;
pub use sys::entropy::fill_random;
pub use sys::event::Event;
pub use sys::heap::{give_back_heap, share_one_heap};
pub use sys::local_time::{LocalTime, local_time};
pub use sys::mapping::Mapping;
pub use sys::poller::{Interest, Poller, Ready};
pub use sys::process::{Side, alone_within, close_inherited, split};
pub use sys::rendezvous::Rendezvous;
pub use sys::room::expect_filling;
pub use sys::timer::Timer;
pub use sys::usage::{Usage, usage};
pub use sys::writeback::begin_writeback;
pub use sys::writers::has_writers;
