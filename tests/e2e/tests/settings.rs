//! What a command in the guest is given: environment, time zone, locale, terminal, host name, user,
//! working directory; what wins over what.

use std::fs;

use e2e::{Home, Terminal, text};

#[test]
fn environment_files_lose_against_words_and_the_last_word_wins() {
    let home = Home::new("soft");
    fs::write(home.path("env"), "# a comment\n\nA=file\nB=file # all of it\nC=a=b\nHOST_HAS\nHOST_LACKS\n")
        .unwrap();
    let script = "echo \"$A|$B|$C|$D|$HOST_HAS|${HOST_LACKS-unset}|${OTHER-unset}\"";
    let args =
        ["run", "--env-file", "env", "-e", "A=word", "-e", "D=1", "-e", "D=2", "--", "sh", "-c", script];
    let output = home
        .command(&args)
        .env("HOST_HAS", "from the host")
        .env_remove("HOST_LACKS")
        .env("OTHER", "not passed")
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "word|file # all of it|a=b|2|from the host|unset|unset\n");
    let said = home.fails(&["run", "--env-file", "nothing", "--", "true"], 125);
    assert!(said.contains("nothing"), "{said}");
    let said = home.fails(&["run", "-e", "=x", "--", "true"], 125);
    assert!(said.contains("KEY=VALUE"), "{said}");
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn time_zone_locale_and_terminal_are_the_hosts_unless_said_otherwise() {
    let home = Home::new("soft");
    home.ok(&["run", "-d", "--name", "m"]);
    let told = |words: &[&str], command: &[&str]| {
        let args = [words, command].concat();
        let mut command = home.command(&args);
        command.env("TZ", "XYZ-3:30").env("LANG", "de_DE.UTF-8").env("LC_TIME", "C").env("TERM", "vt220");
        command.env("https_proxy", "http://proxy:3128");
        text(&command.output().unwrap().stdout)
    };
    let ask = ["sh", "-c", "echo $(date +%z) $LANG $LC_TIME [$TERM] [$https_proxy]"];
    assert_eq!(told(&["exec", "m"], &ask), "+0330 de_DE.UTF-8 C [] []\n");
    assert_eq!(told(&["run", "--"], &ask), "+0330 de_DE.UTF-8 C [] []\n");
    let said = told(&["exec", "-e", "TZ=UTC0", "-e", "LANG=C", "-e", "https_proxy", "m"], &ask);
    assert_eq!(said, "+0000 C C [] [http://proxy:3128]\n");
    let mut terminal = Terminal::start(
        home.command(&["exec", "-t", "m", "sh", "-c", "echo $TERM; tty"]).env("TERM", "vt220"),
    );
    terminal.until("vt220");
    terminal.until("/dev/pts/");
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn host_names() {
    let home = Home::new("soft");
    assert_eq!(home.ok(&["run", "--", "hostname"]), "smolvm\n");
    assert_eq!(home.ok(&["run", "--hostname", "box.example", "--", "hostname"]), "box.example\n");
    assert_eq!(home.ok(&["run", "--cold", "--hostname", "cold", "--", "hostname"]), "cold\n");
    home.ok(&["run", "-d", "--name", "m", "--hostname", "kept"]);
    home.ok(&["freeze", "m"]);
    home.ok(&["start", "m"]);
    assert_eq!(home.ok(&["exec", "m", "hostname"]), "kept\n");
    let said = home.fails(&["run", "--hostname", "two words", "--", "true"], 125);
    assert!(said.contains("--hostname"), "{said}");
}

#[test]
fn commands_inherit_the_definitions_user_directory_and_environment() {
    let home = Home::new("soft");
    let definition = "name = \"x\"\nmemory = \"64MiB\"\n[build]\nsteps = [\"echo app:x:1000:1000::/srv/app:/bin/sh >>/etc/passwd; mkdir /srv/app\"]\n\
                      [run]\ncommand = \"while :; do sleep 1; done\"\nuser = \"app\"\nworkdir = \"/srv/app\"\n\
                      env = { DATA = \"/data\", LANG = \"C.UTF-8\" }\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    let ask = ["sh", "-c", "echo $(id -un) $(pwd) $DATA $LANG"];
    let told = |words: &[&str]| {
        let args = [words, &ask].concat();
        text(&home.command(&args).env("LANG", "de_DE.UTF-8").output().unwrap().stdout)
    };
    assert_eq!(told(&["run", "./x.smolmachine", "--"]), "app /srv/app /data C.UTF-8\n");
    home.ok(&["run", "-d", "--name", "m", "./x.smolmachine"]);
    assert_eq!(told(&["exec", "m"]), "app /srv/app /data C.UTF-8\n");
    let said = told(&["exec", "-u", "root", "-w", "/tmp", "-e", "DATA=mine", "m"]);
    assert_eq!(said, "root /tmp mine C.UTF-8\n");
    let mut shell = Terminal::start(&mut home.command(&["shell", "m"]));
    shell.until("$ ");
    shell.type_in(b"echo I am $(id -un)\n");
    shell.until("I am app");
    shell.until("$ ");
    shell.type_in(b"exit 3\n");
    assert_eq!(shell.wait(), Some(3));
    home.ok(&["rm", "-f", "m"]);
}
