//! examples/ci: a suite many times from one snapshot, by the script that users take over.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use e2e::{Home, engines, program, rounds, text};

/// A suite for the built-in machine: passes where nobody was before, and leaves traces.
const SUITE: &str = "test ! -e /srv/ci/dirty || exit 9
touch /srv/ci/dirty
echo '<testsuite tests=\"1\"/>' >$1
exit ${CI_FAIL:-0}";
const FINGERPRINT: &str =
    "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done >/tmp/processes 2>/dev/null
sort -u /tmp/processes; cat /srv/ci/* | sha256sum; cat /tmp/counted";

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/ci/run.sh")
}

#[test]
fn runs_from_one_snapshot_start_equal_and_leave_nothing() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "made"]);
        fs::create_dir_all(home.path("ci")).unwrap();
        fs::write(home.path("ci/suite"), SUITE).unwrap();
        fs::write(home.path("ci/fingerprint"), FINGERPRINT).unwrap();
        home.ok(&["cp", "ci", "made:/srv/"]);
        home.ok(&["exec", "made", "sh", "-c", "seq 1 1000 | sha256sum >/tmp/counted"]);
        home.ok(&["snapshot", "made", "-o", "ci.smolmachine"]);
        home.ok(&["rm", "-f", "made"]);

        let runs = rounds(6, 100);
        let run = |fail: Option<&str>| {
            let mut command = Command::new("sh");
            command.arg(script()).args(["./ci.smolmachine", &runs.to_string(), "2", "results"]);
            command.current_dir(home.path("")).env("SMOLVM", program()).env("SMOLVM_ENGINE", engine);
            command.env("SMOLVM_HOME", home.path("home"));
            fail.map(|code| command.env("CI_FAIL", code));
            command.output().expect("sh")
        };
        let output = run(None);
        let said = text(&output.stdout);
        let (starts, said) = said.split_once('\n').expect("two lines");
        let digest = starts.strip_prefix(&format!("{runs} run(s) started as ")).expect(starts);
        assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "{starts}");
        let expected = format!("{runs} of {runs} passed, 1 different start(s), 0 machine(s) left\n");
        assert_eq!((said, output.status.code()), (expected.as_str(), Some(0)), "{}", text(&output.stderr));
        for number in 1..=runs {
            let junit = fs::read_to_string(home.path(&format!("results/{number}.xml"))).unwrap();
            assert_eq!(junit, "<testsuite tests=\"1\"/>\n");
        }
        let failed = run(Some("7"));
        assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stdout));
        assert_eq!(fs::read_to_string(home.path("results/1.code")).unwrap(), "7\n");
        assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
    }
}
