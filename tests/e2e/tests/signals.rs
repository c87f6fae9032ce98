//! Ctrl-C (SIGINT, SIGTERM) at any moment: exit code 128 + signal, nothing left behind. The instants
//! are spread over the command's whole life; a command that was faster ends as usual.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use e2e::{Home, instant, rounds, text};

/// Sends the round's signal after `delay`; the exit code that is due, and the one that came.
fn interrupt(mut child: Child, round: u64, delay: Duration) -> (i32, Option<i32>, String) {
    let (name, number) = if round.is_multiple_of(2) { ("INT", 2) } else { ("TERM", 15) };
    std::thread::sleep(delay);
    let pid = child.id().to_string();
    // It may be gone already.
    let _ = std::process::Command::new("kill").args(["-s", name, &pid]).stderr(Stdio::null()).status();
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = std::io::Read::read_to_string(&mut stderr, &mut said);
    }
    let status = child.wait().unwrap();
    // As a shell tells it: before the first line of the program nobody is there to catch a signal.
    (128 + number, status.code().or(status.signal().map(|signal| 128 + signal)), said)
}

/// Interrupts `args` at many moments and looks after each with `check(interrupted)`.
fn at_many_moments(home: &Home, args: &[&str], count: u64, check: impl Fn(bool)) {
    let spawn = || home.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    let output = spawn().wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    let life = begun.elapsed();
    check(false);
    let mut interrupted = 0;
    for round in 0..count {
        let delay = instant(round, life);
        let (due, code, said) = interrupt(spawn(), round, delay);
        assert!(
            code == Some(due) || code == Some(0),
            "{args:?} after {delay:?}: {code:?}, not {due}\n{said}"
        );
        interrupted += u64::from(code == Some(due));
        check(code == Some(due));
        home.settle();
        assert_eq!(home.leftovers(), Vec::<std::path::PathBuf>::new(), "{args:?} after {delay:?}");
    }
    println!("{args:?}: {interrupted} of {count} were interrupted, life {life:?}");
}

#[test]
fn run_in_the_foreground() {
    let home = Home::new("soft");
    home.ok(&["run", "--", "true"]);
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 0.01; done";
    at_many_moments(&home, &["run", "--", "sh", "-c", script], rounds(6, 100), |_| {
        assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    });
}

#[test]
fn run_in_the_background() {
    let home = Home::new("soft");
    home.ok(&["run", "--", "true"]);
    at_many_moments(&home, &["run", "-d", "--name", "m"], rounds(5, 100), |interrupted| {
        if !interrupted {
            home.ok(&["rm", "-f", "m"]);
        }
        // An interrupt may also come when everything was done but the last line.
        if !home.ok(&["ps", "-a", "-q"]).is_empty() {
            assert_eq!(home.ok(&["exec", "m", "echo", "whole"]), "whole\n");
            home.ok(&["rm", "-f", "m"]);
        }
    });
}

#[test]
fn build() {
    let home = Home::new("soft");
    let definition = "name = \"x\"\nmemory = \"64MiB\"\n[build]\nsteps = [\"echo made >/made\"]\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    at_many_moments(&home, &["build", "-q"], rounds(5, 60), |_| {
        // The old file or a new one: whole in any case.
        home.ok(&["verify", "x.smolmachine"]);
        assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    });
    assert_eq!(home.ok(&["run", "./x.smolmachine", "--", "cat", "/made"]), "made\n");
}

#[test]
fn snapshot() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let args = ["snapshot", "-q", "m", "-o", "s.smolmachine"];
    let file = home.path("s.smolmachine");
    at_many_moments(&home, &args, rounds(5, 100), |_| {
        // The machine goes on, and it answers only when it is done with the snapshot.
        assert_eq!(home.ok(&["exec", "m", "echo", "alive"]), "alive\n");
        if file.exists() {
            home.ok(&["verify", "s.smolmachine"]);
            fs::remove_file(&file).unwrap();
        }
    });
}

#[test]
fn a_followed_service_is_stopped() {
    let home = Home::new("soft");
    let definition = "name = \"x\"\nmemory = \"64MiB\"\n[run]\n\
                      command = \"trap 'echo stopping; exit 0' TERM; echo up; while :; do sleep 0.05; done\"\n\
                      [ready]\nlog = \"up\"\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    let mut command = home.command(&["run", "-t", "x.smolmachine"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (due, code, said) = interrupt(child, 1, Duration::from_millis(300));
    assert_eq!(code, Some(due), "{said}");
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    home.settle();
}

/// The demo with a machine that it believes to have built: one that answers as fast as can be.
#[test]
fn demo() {
    let home = Home::new("soft");
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/search");
    let kept = home.path("home/cache/demo");
    fs::create_dir_all(kept.join("app")).unwrap();
    for name in ["Smolfile", "app/make_data.py", "app/server.py"] {
        fs::copy(example.join(name), kept.join(name)).unwrap();
    }
    let answer = "{\\\"pid\\\":7,\\\"rows\\\":3,\\\"now\\\":0,\\\"uuid\\\":\\\"u\\\"}";
    let definition = format!(
        "name = \"search\"\nmemory = \"64MiB\"\n[build]\nsteps = [\"mkdir /www && echo '{answer}' >/www/whoami\"]\n\
         [run]\ncommand = [\"httpd\", \"-f\", \"-p\", \"127.0.0.1:8000\", \"-h\", \"/www\"]\n\
         [ready]\nhttp = \"http://127.0.0.1:8000/whoami\"\n"
    );
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q", "-o", kept.join("search.smolmachine").to_str().unwrap()]);
    fs::write(kept.join("pid"), "7").unwrap();
    let measured = r#"{"rows":3,"cold_ms":1,"native_ms":null,"freeze_ms":1,"bytes":1}"#;
    fs::write(kept.join("measured.json"), measured).unwrap();
    at_many_moments(&home, &["demo"], rounds(3, 40), |interrupted| {
        let left = home.ok(&["ps", "-a", "-q"]);
        assert_eq!(left, if interrupted { "" } else { "demo\n" });
        if !interrupted {
            home.ok(&["rm", "-f", "demo"]);
        }
    });
}
