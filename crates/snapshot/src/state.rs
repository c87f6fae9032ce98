//! [`MachineState`]: vCPUs, clock and devices of a frozen machine.

use hv::{ClockState, CpuidLeaf, EngineKind, VcpuState};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Version of [`MachineState`] and, with it, of `arch`'s vCPU state and the CPU template.
pub const STATE_VERSION: u32 = 1;

/// Everything of a frozen machine but its memory and disk.
///
/// Encoded with postcard (docs/formats/machine-file.md), the machine file's CPU state section; its
/// devices' states ([`PartState`]) are the section beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Version of the CPU template that `cpuid` follows.
    pub template_version: u32,
    /// What CPUID answers; the guest has seen it and it may never change.
    pub cpuid: Vec<CpuidLeaf>,
    /// Guest TSC frequency in kHz.
    pub tsc_khz: u32,
    pub clock: ClockState,
    /// Host wall clock when frozen, nanoseconds since the Unix epoch: for the age of the file.
    pub frozen_realtime_ns: u64,
    /// The engine that ran last; information, never a requirement.
    pub engine: EngineKind,
    pub vcpus: Vec<VcpuState>,
}

/// One device's saved state: its own type, encoded; validated by the device itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartState {
    /// The part's name, unique in the machine.
    pub name: String,
    /// Its postcard bytes.
    pub bytes: Vec<u8>,
}

impl MachineState {
    /// The section's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        postcard::to_stdvec(self).map_err(|e| Error::Malformed { what: MACHINE, why: e.to_string() })
    }

    /// Reads a section's bytes. Sizes are bounded by the bytes present; what the values mean is
    /// validated by whoever takes them over.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::Malformed`].
    pub fn decode(version: u32, bytes: &[u8]) -> Result<Self, Error> {
        let state: Self = decode(MACHINE, version, bytes)?;
        let malformed = |why: String| Error::Malformed { what: MACHINE, why };
        if state.vcpus.is_empty() || state.vcpus.len() > 16 {
            return Err(malformed(format!("{} vCPUs; 1 to 16 are possible", state.vcpus.len())));
        }
        Ok(state)
    }
}

const MACHINE: &str = "machine state";
const DEVICES: &str = "device state";

fn decode<T: for<'a> Deserialize<'a>>(what: &'static str, version: u32, bytes: &[u8]) -> Result<T, Error> {
    if version != STATE_VERSION {
        return Err(Error::Version { what, found: version, reads: STATE_VERSION });
    }
    let malformed = |why: String| Error::Malformed { what, why };
    let (state, rest) = postcard::take_from_bytes(bytes).map_err(|e| malformed(e.to_string()))?;
    if rest.is_empty() { Ok(state) } else { Err(malformed(format!("{} bytes too many", rest.len()))) }
}

impl PartState {
    /// The device state section's bytes: parts in the order of the machine's parts.
    ///
    /// # Errors
    /// [`Error::Malformed`] when it cannot be encoded.
    pub fn encode_all(parts: &[PartState]) -> Result<Vec<u8>, Error> {
        postcard::to_stdvec(parts).map_err(|e| Error::Malformed { what: DEVICES, why: e.to_string() })
    }

    /// Reads the device state section.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::Malformed`].
    pub fn decode_all(version: u32, bytes: &[u8]) -> Result<Vec<PartState>, Error> {
        decode(DEVICES, version, bytes)
    }

    /// Encodes a device's saved state.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the state cannot be encoded (it never grows beyond memory).
    pub fn new<S: Serialize>(name: &str, state: &S) -> Result<Self, Error> {
        let bytes = postcard::to_stdvec(state)
            .map_err(|e| Error::Malformed { what: DEVICES, why: format!("{name}: {e}") })?;
        Ok(Self { name: name.to_owned(), bytes })
    }

    /// Decodes a device's saved state.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn get<S: for<'a> Deserialize<'a>>(&self) -> Result<S, Error> {
        postcard::from_bytes(&self.bytes)
            .map_err(|e| Error::Malformed { what: DEVICES, why: format!("{}: {e}", self.name) })
    }
}
