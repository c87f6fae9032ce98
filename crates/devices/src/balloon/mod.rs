//! virtio-balloon (virtio 1.2, 5.5), for free page reporting: memory that the guest freed goes back to the host.
//!
//! The guest names pages that it does not use ([`worker`]); their bytes are given up through guestmem at once. Nothing
//! is asked of the guest: the balloon's wanted size stays 0. A driver that inflates it all the same is served.

mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::BalloonState;
pub use worker::{Balloon, Returned};
