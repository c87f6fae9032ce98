//! Linux.

pub mod mapping;
