//! Tonight here, tomorrow elsewhere: an editor with text that was never saved and a shell with its history, frozen, moved
//! as one file, gone on with at the same cursor.

use std::fs;

use e2e::{Home, Terminal, engines};

use crate::common::sh;

/// In a shell: a command for its history, then an editor with text, the cursor in its midst.
fn begin_work(terminal: &mut Terminal) {
    terminal.until("# ");
    terminal.type_in(b"echo first-$((40+2))\n");
    terminal.until("first-42");
    terminal.type_in(b"vi /root/note\n");
    terminal.until("~");
    terminal.type_in(b"ihello wor");
    terminal.until("wor");
    leave_insertion(terminal);
    terminal.type_in(b"hh");
    terminal.until(ON_THE_W);
}

/// The cursor in the first line, on the seventh character.
const ON_THE_W: &str = "\x1b[1;7H";

/// Escape, and the status line that follows: vi takes what comes with it as one key.
fn leave_insertion(terminal: &mut Terminal) {
    terminal.type_in(b"\x1b");
    terminal.until("- /root/note [Modified]");
}

/// Goes on in the editor where the cursor was, saves, and asks the shell for what it was told before.
fn end_work(home: &Home, name: &str, word: &str) {
    let mut terminal = Terminal::start(&mut home.command(&["attach", name]));
    // What the screen showed last is shown again, up to where the cursor was.
    terminal.until("hello wor");
    terminal.until(ON_THE_W);
    terminal.type_in(format!("i{word}").as_bytes());
    terminal.until(word);
    leave_insertion(&mut terminal);
    terminal.type_in(b":wq\n");
    let saved = "until grep -q wor /root/note 2>/dev/null; do sleep 0.05; done; cat /root/note";
    assert_eq!(sh(home, name, saved), format!("hello {word}wor\n"));
    terminal.type_in(b"echo mark-$((40+1))\n");
    terminal.until("mark-41");
    terminal.until("# ");
    // Up over the mark and the editor.
    terminal.type_in(b"\x1b[A\x1b[A\x1b[A\n");
    terminal.until("first-42");
    terminal.until("# ");
    terminal.type_in(b"exit 7\n");
    assert_eq!(terminal.wait(), Some(7));
}

#[test]
fn an_editor_goes_on_elsewhere_at_the_same_cursor() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&["run", "-d", "--name", "work"]);
        let mut terminal = Terminal::start(&mut home.command(&["shell", "work"]));
        begin_work(&mut terminal);
        home.ok(&["freeze", "work"]);
        terminal.until("smolvm attach work");
        assert_eq!(terminal.wait(), Some(125));
        // One file, made of what is frozen; nothing runs for it.
        let said = home.run(&["snapshot", "work", "-o", "work.smolmachine"]);
        assert!(said.status.success() && e2e::text(&said.stderr).contains("stays frozen"), "{said:?}");
        assert!(home.ok(&["ps", "-a"]).contains("frozen"));
        assert!(home.fails(&["snapshot", "work", "--incremental", "-o", "x"], 125).contains("--incremental"));
        home.ok(&["verify", "work.smolmachine"]);

        // Another store knows nothing of this one.
        let there = Home::new(engine);
        fs::copy(home.path("work.smolmachine"), there.path("moved.smolmachine")).unwrap();
        there.ok(&["run", "-d", "--name", "again", "./moved.smolmachine"]);
        end_work(&there, "again", "big ");

        // Here it goes on, too, as if nothing had been.
        home.ok(&["start", "work"]);
        end_work(&home, "work", "small ");
    }
}

/// What a run set beside its definition goes along: as many processors, as much memory.
#[test]
fn a_machine_booted_with_more_than_its_base_says_moves_with_it() {
    for engine in engines() {
        let home = Home::new(engine);
        home.ok(&[
            "run", "-d", "--name", "m", "--cold", "--cpus", "2", "--memory", "192MiB", "--", "sleep",
            "100000",
        ]);
        let ask = "nproc; pidof sleep; grep MemTotal /proc/meminfo";
        let before = sh(&home, "m", ask);
        assert!(before.starts_with("2\n"), "{before}");
        home.ok(&["snapshot", "-q", "m", "-o", "live.smolmachine"]);
        home.ok(&["freeze", "m"]);
        home.ok(&["snapshot", "-q", "m", "-o", "frozen.smolmachine"]);
        home.ok(&["start", "m"]);
        assert_eq!(sh(&home, "m", ask), before, "{engine}: here");
        for file in ["live.smolmachine", "frozen.smolmachine"] {
            let there = Home::new(engine);
            fs::copy(home.path(file), there.path(file)).unwrap();
            there.ok(&["run", "-d", "--name", "m", &format!("./{file}")]);
            assert_eq!(sh(&there, "m", ask), before, "{engine}: {file}");
        }
    }
}
