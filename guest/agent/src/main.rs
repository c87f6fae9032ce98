//! The guest's PID 1; everything is in the library. Next: sys/entry.rs, then agent::main.
#![no_main]

#[path = "sys/entry.rs"]
mod entry;
