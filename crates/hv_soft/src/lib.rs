//! x86cpu
