//! How a device is frozen and thawed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A saved state that was refused. It may come from a hostile file: nothing of it was applied.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RestoreError {
    /// Written by a newer (or never released) version.
    #[error(
        "saved state of {device} has version {found}, this program reads up to {newest}: use a newer smolvm"
    )]
    Version { device: &'static str, found: u32, newest: u32 },
    /// A value that the device could never have had.
    #[error("saved state of {device} refused: {what}")]
    Invalid { device: &'static str, what: String },
}

impl RestoreError {
    /// [`RestoreError::Invalid`] in one call.
    pub fn invalid(device: &'static str, what: impl Into<String>) -> Self {
        Self::Invalid { device, what: what.into() }
    }

    /// Accepts versions 1 to `newest`.
    ///
    /// # Errors
    /// [`RestoreError::Version`] for any other.
    pub fn check_version(device: &'static str, found: u32, newest: u32) -> Result<(), Self> {
        if (1..=newest).contains(&found) { Ok(()) } else { Err(Self::Version { device, found, newest }) }
    }
}

/// A part of the machine with a state that travels.
pub trait Saved {
    /// The state: plain data with a version of its own.
    type State: Serialize + DeserializeOwned;

    /// The state now. Nothing runs that could change it: vCPUs stand, the device is paused.
    fn save(&self) -> Self::State;

    /// Takes a state over, on a device that was just constructed with the same parameters.
    ///
    /// # Errors
    /// [`RestoreError`] for a state that does not fit; the device is then as before.
    fn restore(&self, state: &Self::State) -> Result<(), RestoreError>;
}
