//! Translated code that a frozen machine leaves on its host: used by the next start, and by nobody it is not for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use e2e::{Home, wait_until};

/// Keeps a shell and some programs busy for some ten million instructions.
const WORK: &str = "for i in $(seq 12); do seq 3000 | sort -r | md5sum; done";

/// A counter of the engine's, of the first vCPU.
fn counted(home: &Home, name: &str, counter: &str) -> u64 {
    let shown = home.ok(&["stats", "--once", "--engine", "--json", name]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["vcpus"][0][counter].as_u64().unwrap_or_else(|| panic!("{counter} in {shown}"))
}

fn work(home: &Home) -> String {
    home.ok(&["exec", "m", "sh", "-c", WORK])
}

fn code(home: &Home) -> PathBuf {
    home.path("home/state/instances/m/code")
}

#[test]
fn a_frozen_machine_goes_on_with_its_translations() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let said = work(&home);
    for _ in 0..2 {
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
        let meta = fs::metadata(code(&home)).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o600, fs::metadata(home.path("")).unwrap().uid()));
        assert_eq!(work(&home), said);
        let (kept, made) = (counted(&home, "m", "translations_kept"), counted(&home, "m", "translations"));
        assert!(kept > 500 && made < kept / 2, "{kept} kept, {made} made");
    }
    // One that did nothing since has them still.
    for _ in 0..2 {
        home.ok(&["freeze", "m"]);
        home.ok(&["start", "m"]);
    }
    assert_eq!(work(&home), said);
    assert!(counted(&home, "m", "translations_kept") > 500);
    // A disk alone needs none.
    home.ok(&["stop", "m"]);
    assert!(!code(&home).exists());
    home.ok(&["start", "m"]);
    work(&home);
    home.ok(&["freeze", "m"]);
    home.ok(&["rm", "m"]);
    assert!(!home.path("home/state/instances/m").exists());
}

#[test]
fn code_that_is_damaged_or_of_another_state_or_anybodys_is_not_used() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let said = work(&home);
    home.ok(&["freeze", "m"]);
    let old = fs::read(code(&home)).unwrap();
    home.ok(&["start", "m"]);
    work(&home);
    let refuse = |what: &str, change: &dyn Fn()| {
        home.ok(&["freeze", "m"]);
        assert!(fs::read(code(&home)).unwrap() != old);
        change();
        home.ok(&["start", "m"]);
        assert_eq!(work(&home), said, "{what}");
        // It was looked at: a thread of its own has come to the end of what else is known.
        wait_until("the list", || counted(&home, "m", "translations") > 300);
        assert_eq!(counted(&home, "m", "translations_kept"), 0, "{what}");
    };
    let damaged = || {
        let mut code_now = fs::read(code(&home)).unwrap();
        let middle = code_now.len() / 2;
        code_now[middle] ^= 4;
        fs::write(code(&home), code_now).unwrap();
    };
    refuse("one bit is another", &damaged);
    refuse("of the state before", &|| fs::write(code(&home), &old).unwrap());
    refuse("a group may write it", &|| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(code(&home), fs::Permissions::from_mode(0o660)).unwrap();
    });
    refuse("it is gone", &|| fs::remove_file(code(&home)).unwrap());
}
