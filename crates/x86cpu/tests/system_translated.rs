//! The tests of the privileged half once more, with everything translated before it runs.

#[path = "system/main.rs"]
mod system;
