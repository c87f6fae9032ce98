//! Linux.

pub mod capacity;
pub mod entropy;
pub mod event;
pub mod mapping;
pub mod poller;
pub mod timer;
