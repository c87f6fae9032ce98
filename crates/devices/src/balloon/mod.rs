//! virtio-balloon (virtio 1.2, 5.5): memory that the guest freed, or gives up when it is asked to, goes back to the host.
//!
//! The guest names pages that it does not use ([`worker`]); their bytes are given up through guestmem at once. Unless
//! somebody steers the balloon ([`Balloon::want`]) nothing is asked of the guest: the wanted size is 0. A driver that
//! inflates it all the same is served.

mod saved_state;
#[cfg(test)]
mod tests;
mod worker;

pub use saved_state::BalloonState;
pub use worker::Balloon;
