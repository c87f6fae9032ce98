//! The C entry point. The standard library's own start-up (handlers for stack overflow, a poll of the standard
//! descriptors, reading /proc/self/maps) is worth skipping in a program whose guest instructions are counted.
#![allow(unsafe_code)] // exporting `main` by its C name; nothing else

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;

/// Called by the C runtime.
// SAFETY: no other symbol of that name exists in this program (`no_main`).
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let mut arguments = Vec::new();
    for index in 1..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the C runtime passes `argc` pointers to NUL-terminated strings that live as long as the process.
        let text = unsafe { CStr::from_ptr(*argv.add(index)) };
        arguments.push(OsString::from_vec(text.to_bytes().to_vec()));
    }
    agent::main(&arguments)
}
