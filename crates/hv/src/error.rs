//! What an engine can fail at.

use thiserror::Error;

/// An engine's failure. The text says what was attempted and what to do next.
#[derive(Debug, Error)]
pub enum Error {
    /// A host call failed.
    #[error("{engine}: {what} failed: {source}")]
    Host {
        engine: &'static str,
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// The engine cannot offer what the machine needs; the text names it.
    #[error("{engine}: {what}; {advice}")]
    Unsupported { engine: &'static str, what: String, advice: &'static str },
    /// A saved state does not fit this engine or is not a possible state.
    #[error("{engine}: saved vCPU state refused: {what}")]
    BadState { engine: &'static str, what: String },
}
