//! Linux.

pub mod capacity;
pub mod cgroup;
pub mod code_memory;
pub mod entropy;
pub mod event;
pub mod heap;
pub mod local_time;
pub mod mapping;
pub mod poller;
pub mod process;
pub mod rendezvous;
pub mod room;
pub mod timer;
pub mod usage;
pub mod writeback;
pub mod writers;
