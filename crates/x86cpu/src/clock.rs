//! Guest time.

/// The machine's clock.
#[derive(Debug, Default)]
pub struct Clock {}
