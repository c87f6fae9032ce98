//! A definition: parsed or refused with a text, and its places found, whatever it says.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match spec::parse(text) {
        Ok(file) => {
            let spec = file.resolve("machine").expect("what was accepted resolves");
            assert!((1..=16).contains(&spec.vcpus) && spec.memory.is_multiple_of(4096));
            assert!(spec::valid_name(&spec.name));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let lines = text.lines().count().max(1);
    for path in [&["root", "files"][..], &["build", "steps", "1"], &["snapshot", "0", "name"], &["run"]] {
        assert!(spec::locate(text, path).is_none_or(|line| (1..=lines + 1).contains(&line)));
    }
});
