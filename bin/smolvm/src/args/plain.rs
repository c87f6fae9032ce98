//! Command lines without a flag, read without the definition of any.
//!
//! Problem: making the definition of `run`'s forty flags takes 54 fresh pages and a tenth of what comes before a guest's
//! first instruction, also when none of them is said. Strategy: the verbs that somebody waits for are recognised where their
//! first words are no flags; what follows them is the command's. Invariant: the result is the one that clap would have
//! given, which a test holds them to; whatever is not plain, mistakes among it, is clap's.

use std::ffi::OsString;

use super::{Args, EngineArgs, Exec, Global, Keep, OnFailure, Process, Run, Verb, VmmArgs};

/// The meaning of `words`, the program's name first, where they are plain.
pub fn parse(words: &[OsString]) -> Option<Args> {
    let words: Vec<&str> = words.iter().skip(1).map(|word| word.to_str()).collect::<Option<_>>()?;
    let (verb, words) = words.split_first()?;
    // How many first words must be there, and no flags.
    let names = if *verb == "exec" { 2 } else { 1 };
    let named = words.get(..names)?;
    if named.iter().any(|word| word.is_empty() || word.starts_with('-')) {
        return None;
    }
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let verb = match (*verb, words) {
        ("run", words) => Verb::Run(Box::new(run(own(words), engine()?))),
        ("exec", [name, command @ ..]) => Verb::Exec(Exec {
            process: Process::default(),
            detach: false,
            name: (*name).to_owned(),
            command: own(command),
        }),
        ("__vmm", [name]) => Verb::Vmm(VmmArgs { name: (*name).to_owned() }),
        ("__copies", names) if names.iter().all(|name| !name.starts_with('-')) => {
            Verb::Copies { names: own(names) }
        }
        _ => return None,
    };
    Some(Args { verb, global: Global::default() })
}

/// What executes the guest where no flag says it; `None` where the environment says something that is no text.
fn engine() -> Option<String> {
    std::env::var_os("SMOLVM_ENGINE").map_or(Some("auto".to_owned()), |word| word.into_string().ok())
}

/// `run` with these words and no flag.
fn run(words: Vec<String>, engine: String) -> Run {
    Run {
        process: Process::default(),
        detach: false,
        name: None,
        rm: false,
        publish: Vec::new(),
        publish_all: false,
        mounts: Vec::new(),
        hostname: None,
        net: None,
        allow_host: Vec::new(),
        allow_cidr: Vec::new(),
        dns: Vec::new(),
        cold: false,
        snapshot: None,
        cpus: None,
        memory: None,
        label: Vec::new(),
        timeout: None,
        deterministic: false,
        lockstep: false,
        states_to_stdin: false,
        keep: Keep {
            hooks: Vec::new(),
            restart: None,
            health_cmd: None,
            health_interval: "30s".to_owned(),
            health_retries: 3,
            health_on_failure: OnFailure::None,
            network: Vec::new(),
            memory_limit: None,
            cpu_limit: None,
            gdb: None,
        },
        engine: EngineArgs { engine, force_template: false, tsc_khz: None },
        words,
        no_what: false,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_plain_line_means_what_its_definition_says() {
        for line in [
            "smolvm run a.smolmachine",
            "smolvm run a.smolmachine ls",
            "smolvm run a.smolmachine ls -l --json -q",
            "smolvm run a.smolmachine -- ls",
            "smolvm run a.smolmachine -- ls -- x",
            "smolvm run a.smolmachine ls -- x",
            "smolvm run a.smolmachine --",
            "smolvm run a.smolmachine -d",
            "smolvm run debian:12 sh -c exit",
            "smolvm exec m ls",
            "smolvm exec m ls -l --json",
            "smolvm exec m ls -- x",
            "smolvm __vmm m",
            "smolvm __copies a b c",
        ] {
            let words = words(line);
            let defined = Args::try_parse_from(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
            let plain = parse(&words).unwrap_or_else(|| panic!("{line} is plain"));
            assert_eq!(format!("{plain:?}"), format!("{defined:?}"), "{line}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_definition() {
        for line in [
            "smolvm",
            "smolvm run",
            "smolvm run -d a",
            "smolvm run -- ls",
            "smolvm run - ls",
            "smolvm --json run a",
            "smolvm exec",
            "smolvm exec m",
            "smolvm exec m -it sh",
            "smolvm exec m -- ls",
            "smolvm exec -i m ls",
            "smolvm ps",
            "smolvm rum a",
            "smolvm __vmm a b",
            "smolvm __copies a -h",
        ] {
            assert!(parse(&words(line)).is_none(), "{line}");
        }
    }
}
