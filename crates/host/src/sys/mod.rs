//! The one place that chooses the host.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;

#[cfg(not(target_os = "linux"))]
compile_error!("smolvm runs on Linux hosts today; macOS is planned (crates/host/src/sys/macos)");
