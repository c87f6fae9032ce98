//! `events`: what happens to machines, a line each.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use e2e::{Home, text};
use serde_json::{Value, json};

/// A running `events`, with what it says.
struct Events {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Events {
    /// From when it says that it watches. It lives five and a half hours east of UTC.
    fn new(home: &Home, args: &[&str]) -> Self {
        let args = [&["events"], args].concat();
        let mut command = home.command(&args);
        command.env("TZ", "EAST-5:30").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("smolvm");
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("watching"), "{said}");
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "{line:?}");
        line
    }

    /// The next object, without its time.
    fn next(&mut self) -> Value {
        let line = self.line();
        let mut object: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let time = object.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().is_some_and(|time| time.ends_with("+05:30")), "{time}");
        object
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inspect(home: &Home, name: &str) -> Value {
    serde_json::from_str(&home.ok(&["inspect", "--json", name])).unwrap()
}

fn kill(pid: &Value) {
    let pid = pid.as_u64().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
}

#[test]
fn a_life_is_told_in_order() {
    let home = Home::new("soft");
    let mut all = Events::new(&home, &["--json"]);
    let mut one = Events::new(&home, &["--json", "m-1", "not-there"]);
    home.ok(&["run", "-d", "--name", "m"]);
    let made = inspect(&home, "m");
    let (source, file) = (made["source"].clone(), made["file"].clone());
    let created = json!({"name": "m", "event": "created", "source": source, "file": file});
    assert_eq!(all.next(), created);
    assert_eq!(all.next(), json!({"name": "m", "event": "started", "source": source}));
    // What hears of an end can start it: its process is gone.
    let freezes = home.spawn(&["freeze", "m"]);
    assert_eq!(all.next(), json!({"name": "m", "event": "frozen"}));
    home.ok(&["start", "m"]);
    assert!(freezes.wait_with_output().unwrap().status.success());
    assert_eq!(all.next(), json!({"name": "m", "event": "resumed", "source": source}));
    home.ok(&["fork", "m"]);
    let created =
        json!({"name": "m-1", "event": "created", "source": source, "file": file, "forked_from": "m"});
    let started = json!({"name": "m-1", "event": "started", "source": source});
    assert_eq!([all.next(), all.next()], [created.clone(), started.clone()]);
    // A process that is killed says nothing, and is found out all the same.
    kill(&inspect(&home, "m")["pid"]);
    assert_eq!(all.next(), json!({"name": "m", "event": "died", "exit_code": null}));
    home.ok(&["start", "m"]);
    assert_eq!(all.next(), json!({"name": "m", "event": "started", "source": source}));
    home.ok(&["stop", "m"]);
    let stopped = all.next();
    assert_eq!([&stopped["name"], &stopped["event"]], ["m", "stopped"]);
    home.ok(&["rm", "m"]);
    assert_eq!(all.next(), json!({"name": "m", "event": "removed"}));
    kill(&inspect(&home, "m-1")["pid"]);
    let died = json!({"name": "m-1", "event": "died", "exit_code": null});
    assert_eq!(all.next(), died);
    home.ok(&["rm", "m-1"]);
    let removed = json!({"name": "m-1", "event": "removed"});
    assert_eq!(all.next(), removed);
    // Who asked for one heard nothing of the other.
    assert_eq!([one.next(), one.next(), one.next(), one.next()], [created, started, died, removed]);
}

#[test]
fn exit_codes_restarts_and_health_are_told() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "old"]);
    let mut events = Events::new(&home, &["--json"]);
    // What was there before is known: its end is told.
    kill(&inspect(&home, "old")["pid"]);
    assert_eq!(events.next(), json!({"name": "old", "event": "died", "exit_code": null}));
    let script = "while [ ! -e /tmp/end ]; do sleep 0.02; done; rm /tmp/end; exit 7";
    let check = ["--health-cmd", "test -e /tmp/well", "--health-interval", "100ms", "--health-retries", "1"];
    let run = [&["run", "-d", "--name", "m", "--restart", "on-failure:1"], &check[..]].concat();
    home.ok(&[&run[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(events.next()["event"], "created");
    assert_eq!(events.next()["event"], "started");
    assert_eq!(events.next(), json!({"name": "m", "event": "health", "health": "unhealthy"}));
    home.ok(&["exec", "m", "touch", "/tmp/well"]);
    assert_eq!(events.next(), json!({"name": "m", "event": "health", "health": "healthy"}));
    home.ok(&["exec", "m", "touch", "/tmp/end"]);
    let restarted = json!({"name": "m", "event": "restarted", "restarts": 1, "exit_code": 7});
    assert_eq!(events.next(), restarted);
    home.ok(&["exec", "m", "touch", "/tmp/end"]);
    assert_eq!(events.next(), json!({"name": "m", "event": "stopped", "exit_code": 7}));
}

#[test]
fn a_run_in_the_foreground_comes_and_goes() {
    let home = Home::new("soft");
    let mut events = Events::new(&home, &[]);
    home.ok(&["run", "--", "true"]);
    let lines = [events.line(), events.line(), events.line()];
    for (line, word) in lines.iter().zip(["created", "started", "removed"]) {
        assert_eq!(line.split_whitespace().nth(2), Some(word), "{line}");
    }
    // Nobody reads any more: it ends at the next thing it has to say, without a word.
    let Events { child, lines } = &mut events;
    *lines = BufReader::new({
        let mut sleeper = std::process::Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        sleeper.wait().unwrap();
        sleeper.stdout.take().unwrap()
    });
    home.ok(&["run", "--", "true"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_name_that_none_can_have_is_refused() {
    let home = Home::new("soft");
    let said = home.fails(&["events", "No/Name"], 125);
    assert!(said.contains("cannot name an instance"), "{said}");
    assert_eq!(text(&home.run(&["events", "No/Name"]).stdout), "");
}
