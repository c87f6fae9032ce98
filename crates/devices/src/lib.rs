//! Device models. Each takes its world (memory, line, disk, sinks) as parameters and knows no
//! engine; `machine` puts them together.
//!
//! In each folder: `regs` what the guest sees, `request` parsing without effects, `worker` doing
//! it, `saved_state` what travels. No device starts a thread when it is made.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod blk;
pub mod console;
pub mod fs;
pub mod ioapic;
pub mod net;
pub mod power;
pub mod rng;
pub mod serial;
pub mod vmgenid;
pub mod vsock;

mod output;

pub use output::{Output, Tail};

/// Reads a configuration structure; bytes beyond its end stay as they are.
fn read_bytes(structure: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|o| structure.get(o..)).unwrap_or(&[]);
    data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}
