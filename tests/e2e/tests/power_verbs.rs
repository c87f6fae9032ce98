//! The power fails at many instants of what writes machine files and the store: a build, a snapshot, changes alone, an
//! import, a move, a prune, a fork, a freeze. What was on its way to the disk is lost; what a command said to have done is
//! there, what was there before is there, and nothing half is taken for whole.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::power::{Disk, pause_all, signal};
use e2e::{Home, instant, rounds, text};

/// All that smolvm keeps, and the files of its user, lie on a disk of their own: `home`.
struct Host {
    disk: Disk,
    home: Home,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end_all();
    }
}

/// What is to be found after the power failed: what stands in the way, if anything does.
type Check<'a> = &'a dyn Fn(&Host, u64, bool) -> Result<(), String>;

impl Host {
    /// One with a machine file `home/x.smolmachine`, and what `prepare` makes. Nothing, said aloud, where it cannot be.
    fn new(prepare: impl FnOnce(&Home)) -> Option<Self> {
        let home = Home::new("soft");
        let disk = Disk::make(&home.path("home"), 512)?;
        let host = Self { disk, home };
        fs::write(host.home.path("Smolfile"), DEFINITION).unwrap();
        build(&host.home, "home/x.smolmachine", 0);
        prepare(&host.home);
        host.end_all();
        host.disk.keep();
        Some(host)
    }

    fn end_all(&self) {
        while !self.home.processes().is_empty() {
            self.home.processes().into_iter().for_each(|pid| signal(pid, "-KILL"));
            std::thread::yield_now();
        }
    }

    /// Runs the command and lets the power fail so much later, or when it has ended; whether it had said that it was
    /// done.
    fn fail(&self, mut command: Command, delay: Option<Duration>) -> bool {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let ended = match delay {
            Some(delay) => {
                std::thread::sleep(delay);
                child.try_wait().unwrap()
            }
            None => Some(child.wait().unwrap()),
        };
        assert!(ended.is_none_or(|status| status.success()), "{command:?}: {ended:?}");
        pause_all(|| self.home.processes());
        self.disk.lose_power(|| {
            self.end_all();
            child.wait().unwrap();
        });
        ended.is_some()
    }

    /// Lets the power fail at many instants of a command, each time after `before`; how often it was done by then.
    fn at_many_instants(
        &self,
        before: &dyn Fn(&Home, u64),
        command: &dyn Fn(&Home, u64) -> Command,
        check: Check<'_>,
    ) {
        self.end_all();
        self.disk.again();
        before(&self.home, 0);
        let begun = std::time::Instant::now();
        let output = command(&self.home, 0).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let life = begun.elapsed();
        let (count, mut done) = (rounds(3, 500), 0);
        for round in 1..=count {
            self.end_all();
            self.disk.again();
            before(&self.home, round);
            let ended = self.fail(command(&self.home, round), Some(instant(round, life.mul_f64(1.2))));
            done += u64::from(ended);
            check(self, round, ended)
                .unwrap_or_else(|why| panic!("round {round}, {ended}, life {life:?}: {why}"));
        }
        println!("{count} power failures, {done} when it was done");
    }

    /// What the program says, or that it failed.
    fn ask(&self, args: &[&str]) -> Result<String, String> {
        let output = self.home.run(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok(out) } else { Err(format!("{args:?}: {out}{err}")) }
    }

    /// `file` is whole, and a machine whose `/number` is `old` or `new`; of a command that was done, `new`.
    fn whole(&self, file: &str, old: u64, new: u64, done: bool) -> Result<(), String> {
        self.ask(&["verify", file])?;
        let said = self.ask(&["run", file, "--", "cat", "/number"])?;
        match said.trim().parse::<u64>() {
            Ok(number) if number == new || number == old && !done => Ok(()),
            _ => Err(format!("{file} is of {said:?}, neither {old} nor {new}; done: {done}")),
        }
    }

    /// What a repair finds it mends, and then there is nothing left.
    fn repaired(&self) -> Result<(), String> {
        self.ask(&["doctor", "--repair"])?;
        let said = self.ask(&["doctor", "--repair"])?;
        // One in a user's own directory goes with the next file that is written there.
        let mut left = self.home.leftovers();
        left.retain(|path| path.parent() != Some(&self.home.path("home")));
        if said.contains("nothing to repair") && left.is_empty() {
            Ok(())
        } else {
            Err(format!("{said}{left:?}"))
        }
    }

    /// Every named machine file that is there is whole; the names.
    fn names(&self) -> Result<Vec<String>, String> {
        let images: serde_json::Value = serde_json::from_str(&self.ask(&["images", "--json"])?).unwrap();
        let mut names = Vec::new();
        for image in images.as_array().unwrap() {
            if image["kind"] == "damaged" {
                return Err(images.to_string());
            }
            names.extend(
                image["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()),
            );
        }
        Ok(names)
    }
}

const DEFINITION: &str = "name = \"x\"\nmemory = \"64MiB\"\n[root]\nfiles = { \"number\" = \"/number\" }\n";

/// A machine that says `number`.
fn build(home: &Home, file: &str, number: u64) {
    fs::write(home.path("number"), format!("{number}\n")).unwrap();
    home.ok(&["build", "-q", "-o", file]);
}

/// A running machine `m` whose disk says `number`.
fn running(home: &Home, number: u64) {
    home.ok(&["run", "-d", "--name", "m", "home/x.smolmachine"]);
    home.ok(&["exec", "m", "sh", "-c", &format!("echo {number} >/number")]);
}

#[test]
fn a_build() {
    let Some(host) = Host::new(|_| ()) else { return };
    host.at_many_instants(
        &|home, round| fs::write(home.path("number"), format!("{round}\n")).unwrap(),
        &|home, _| home.command(&["build", "-q", "-o", "home/x.smolmachine"]),
        &|host, round, done| {
            host.repaired()?;
            host.whole("home/x.smolmachine", 0, round, done)
        },
    );
}

/// Also of changes alone, in the place of a whole one.
#[test]
fn a_snapshot() {
    let Some(host) = Host::new(|home| {
        running(home, 0);
        home.ok(&["snapshot", "-q", "m", "-o", "home/s.smolmachine"]);
        home.ok(&["rm", "-f", "m"]);
    }) else {
        return;
    };
    for more in [&[][..], &["--incremental"]] {
        let words = [&["snapshot", "-q", "m", "-o", "home/s.smolmachine"], more].concat();
        host.at_many_instants(&running, &|home, _| home.command(&words), &|host, round, done| {
            host.repaired()?;
            host.whole("home/s.smolmachine", 0, round, done)?;
            // The machine went with the power, and begins anew.
            host.ask(&["start", "m"])?;
            host.ask(&["exec", "m", "true"]).map(drop)
        });
    }
}

#[test]
fn an_import_and_a_move() {
    let Some(host) = Host::new(|home| build(home, "home/y.smolmachine", 5)) else { return };
    for more in [&[][..], &["--move"]] {
        let words = [&["import", "home/y.smolmachine", "--name", "y"], more].concat();
        host.at_many_instants(&|_, _| (), &|home, _| home.command(&words), &|host, _, done| {
            host.repaired()?;
            let here = host.home.path("home/y.smolmachine").exists();
            let named = host.names()?.contains(&"y".to_owned());
            if (done || !here) && !named {
                return Err(format!("y is lost; its file is there: {here}"));
            }
            if here {
                host.whole("home/y.smolmachine", 5, 5, true)?;
            }
            if named { host.whole("y", 5, 5, true) } else { Ok(()) }
        });
    }
}

#[test]
fn a_prune() {
    let Some(host) = Host::new(|home| {
        running(home, 7);
        home.ok(&["freeze", "-q", "m"]);
        for number in 1..4 {
            build(home, "home/y.smolmachine", number);
            home.ok(&["import", "home/y.smolmachine", "--name", &format!("y{number}")]);
        }
    }) else {
        return;
    };
    host.at_many_instants(&|_, _| (), &|home, _| home.command(&["prune", "-a"]), &|host, _, _| {
        host.repaired()?;
        for name in host.names()?.iter().filter(|name| name.starts_with('y')) {
            let number = name[1..].parse::<u64>().unwrap();
            host.whole(name, number, number, true)?;
        }
        host.ask(&["start", "m"])?;
        let said = host.ask(&["exec", "m", "cat", "/number"])?;
        if said == "7\n" { Ok(()) } else { Err(format!("the frozen machine says {said}")) }
    });
}

#[test]
fn a_fork() {
    let Some(host) = Host::new(|_| ()) else { return };
    let words = ["fork", "-q", "m", "--count", "3"];
    host.at_many_instants(&running, &|home, _| home.command(&words), &|host, round, _| {
        host.repaired()?;
        host.whole("home/x.smolmachine", 0, 0, true)?;
        let names = host.ask(&["ps", "-a", "-q"])?;
        for name in names.lines() {
            // A power failure ends copies (docs/adr/0081): one starts from where it was copied, or not at all.
            match host.ask(&["start", name]) {
                Ok(_) => {
                    let said = host.ask(&["exec", name, "cat", "/number"])?;
                    let right = if name == "m" { 0 } else { round };
                    if said != format!("{right}\n") {
                        return Err(format!("{name} says {said}"));
                    }
                }
                Err(why) if name == "m" => return Err(why),
                Err(_) => {}
            }
            host.ask(&["rm", "-f", name])?;
        }
        if names.lines().any(|name| name == "m") { host.repaired() } else { Err("the source is lost".into()) }
    });
}

#[test]
fn a_freeze() {
    let Some(host) = Host::new(|_| ()) else { return };
    host.at_many_instants(&running, &|home, _| home.command(&["freeze", "-q", "m"]), &|host, round, done| {
        host.repaired()?;
        let frozen = host.ask(&["ps", "-a"])?.contains("frozen");
        host.ask(&["start", "m"])?;
        let said = host.ask(&["exec", "m", "cat", "/number"])?;
        let right = if frozen { round } else { 0 };
        if said == format!("{right}\n") && (frozen || !done) {
            Ok(())
        } else {
            Err(format!("frozen: {frozen}, done: {done}; it says {said}"))
        }
    });
}

/// Others write without care, and what is checked above finds it out: written in place, and under another name that is
/// given to it when it is whole, as far as its writer sees.
#[test]
fn control_what_is_written_without_care_is_found_out() {
    let Some(host) = Host::new(|home| {
        build(home, "new", 9);
    }) else {
        return;
    };
    for line in ["cat new >home/x.smolmachine", "cat new >home/tmp && mv home/tmp home/x.smolmachine"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(host.home.path(""));
        host.end_all();
        host.disk.again();
        assert!(host.fail(shell, None), "{line}");
        let found = host.whole("home/x.smolmachine", 0, 9, true);
        println!("{line}: {found:?}");
        assert!(found.is_err(), "{line}: {found:?}");
    }
}
