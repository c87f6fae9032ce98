//! The system calls that have no safe wrapper elsewhere. The only modules of the agent with `unsafe`.

pub mod ext4;
pub mod process;
pub mod random;
pub mod signals;
pub mod socket;
pub mod tcp;
