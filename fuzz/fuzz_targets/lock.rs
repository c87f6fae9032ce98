//! Any text as a Smolfile.lock: a problem that says what to do, or a lock that reads back as it was written.
#![no_main]

use build::Lock;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Lock::parse(text) {
        Ok(lock) => {
            let written = lock.text().expect("what was read can be written");
            assert_eq!(Lock::parse(&written).as_ref(), Ok(&lock), "{written}");
        }
        Err(what) => assert!(what.contains("remove the file") || what.contains("is not read here"), "{what}"),
    }
});
