//! A machine under Debian's gdb.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use e2e::{Home, engines, text};

/// Runs gdb (Debian's package of that name) with these commands after connecting.
fn gdb(port: u16, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-ex", "set pagination off", "-ex", "set architecture i386:x86-64"]);
    gdb.args(["-ex", &format!("target remote 127.0.0.1:{port}")]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().expect("gdb, from Debian's package of that name");
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    format!("{out}\n{err}")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The hexadecimal number behind `name`, as `info registers` and `print/x` show it.
fn value(said: &str, name: &str) -> u64 {
    let line =
        said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {said}"));
    let word = line.split_whitespace().find(|word| word.starts_with("0x")).expect("a number");
    u64::from_str_radix(&word[2..], 16).expect("hexadecimal")
}

#[test]
fn gdb_stops_looks_steps_and_lets_go() {
    for engine in engines() {
        let home = Home::new(engine);
        let port = free_port();
        let at = port.to_string();
        let count = "i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.01; done";
        home.ok(&["run", "-d", "--name", "m", "--gdb", &at, "--", "sh", "-c", count]);
        // A place that the loop comes by again and again.
        let symbols = home.ok(&["exec", "m", "cat", "/proc/kallsyms"]);
        let symbol =
            symbols.lines().find(|line| line.ends_with(" do_sys_openat2")).expect("a symbol of the kernel");
        let address = u64::from_str_radix(symbol.split(' ').next().unwrap(), 16).unwrap();

        let said = gdb(port, &["info threads", "info registers rip", "detach"]);
        assert!(said.contains("vcpu0"), "{said}");
        assert_ne!(value(&said, "rip"), 0);
        let breakpoint = format!("break *{address:#x}");
        let commands = [
            &breakpoint,
            "continue",
            "info registers rip",
            "x/2i $rip",
            "stepi",
            "info registers rip",
            "continue",
        ];
        let more = ["print/x $rip", "x/2gx $rsp", "set $r15 = $r15", "delete", "detach"];
        let said = gdb(port, &[&commands[..], &more[..]].concat());
        assert_eq!(value(&said, "rip"), address, "{said}");
        let steps: Vec<&str> = said.lines().filter(|line| line.starts_with("rip")).collect();
        assert!(steps.len() == 2 && steps[0] != steps[1], "{said}");
        assert_eq!(value(&said, "$1"), address, "the second time: {said}");
        assert!(!said.contains("Cannot access memory"), "{said}");

        // It goes on as if nothing had been.
        let again = "a=$(cat /tmp/count); while [ $(cat /tmp/count) = $a ]; do sleep 0.01; done";
        home.ok(&["exec", "m", "sh", "-c", again]);
        home.ok(&["rm", "-f", "m"]);
    }
}

#[test]
fn a_toolbox_looks_into_a_guest_without_tools() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m", "--", "sleep", "1000"]);
    // As good as a guest that never had a shell.
    home.ok(&["exec", "m", "sh", "-c", "echo here >/etc/mark; mv /bin/busybox /bin/gone; sync"]);
    assert!(!home.run(&["exec", "m", "sh", "-c", "true"]).status.success());
    let before = home.run(&["stats", "--once", "--json", "--interval", "10ms", "m"]).stdout;
    let rescue = |command: &str| home.ok(&["shell", "--rescue", "m", "--", "sh", "-c", command]);
    assert_eq!(rescue("cat /guest/etc/mark; echo over >/tmp/x"), "here\n");
    assert!(rescue("ps -o args").contains("sleep 1000"));
    assert_eq!(home.run(&["shell", "--rescue", "m", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    // Tools of one's own, and nothing left of any toolbox.
    std::fs::create_dir_all(home.path("tools/usr/bin")).unwrap();
    std::fs::write(
        home.path("tools/usr/bin/greet"),
        "#!/.smolvm/bin/sh\necho hello from $(readlink /proc/1/exe)\n",
    )
    .unwrap();
    let chmod = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(home.path("tools/usr/bin/greet"), chmod).unwrap();
    let greeted = home.ok(&["shell", "--rescue", "--tools", "tools", "m", "--", "greet"]);
    assert!(greeted.starts_with("hello from"), "{greeted}");
    // More than the guest has room for: nothing of it stays.
    std::fs::File::create(home.path("tools/usr/large")).unwrap().set_len(400 << 20).unwrap();
    let said = home.fails(&["shell", "--rescue", "--tools", "tools", "m", "--", "greet"], 125);
    assert!(said.contains("No space left"), "{said}");
    assert_eq!(rescue("ls /guest/run | grep -c smolvm-rescue"), "1\n");
    let disk = |said: &[u8]| {
        let rows: serde_json::Value = serde_json::from_slice(said).expect("JSON");
        rows[0]["disk"].as_u64().expect("a number")
    };
    let after = home.run(&["stats", "--once", "--json", "--interval", "10ms", "m"]).stdout;
    // The toolbox has two megabytes; a journal's own blocks may come at any time.
    assert!(disk(&after) < disk(&before) + (256 << 10), "the toolbox went to the disk");
}
