//! A machine moves to the next version of its file: by a delta, with its volume kept.

use std::fs;

use e2e::Home;

/// Writes a definition whose service says `version`, and builds it.
fn build(home: &Home, version: u32, command: &str) -> String {
    fs::write(home.path("version"), format!("{version}\n")).unwrap();
    fs::write(
        home.path("Smolfile"),
        format!(
            "name = \"app\"\nmemory = \"64MiB\"\n[root]\nfiles = {{ \"version\" = \"/srv/version\" }}\n\
             [run]\ncommand = \"{command}\"\n[ready]\nafter = \"300ms\"\n"
        ),
    )
    .unwrap();
    let file = format!("app-{version}.smolmachine");
    home.ok(&["build", "-q", "-o", &file]);
    file
}

#[test]
fn the_next_version_comes_as_a_delta_and_finds_the_data() {
    let home = Home::new("soft");
    let service = "cat /srv/version; echo up; exec sleep 99999";
    let (old, new) = (build(&home, 1, service), build(&home, 2, service));
    let made: serde_json::Value =
        serde_json::from_str(&home.ok(&["delta", "create", &old, &new, "-o", "d", "--json"])).unwrap();
    let share = made["bytes"].as_u64().unwrap() as f64 / made["new_bytes"].as_u64().unwrap() as f64;
    println!("delta of a change of one line: {:.2} % of the file; {made}", share * 100.0);
    assert!(share < 0.1, "{made}");
    home.ok(&["delta", "apply", &old, "d", "-o", "made.smolmachine"]);
    assert!(fs::read(home.path("made.smolmachine")).unwrap() == fs::read(home.path(&new)).unwrap());
    let said = home.fails(&["delta", "apply", &new, "d", "-o", "x"], 125);
    assert!(said.contains("another one, or another build of it"), "{said}");

    home.ok(&["run", "-d", "--name", "app", "-v", "data:/data", &format!("./{old}")]);
    home.ok(&["exec", "app", "sh", "-c", "echo kept >/data/file; echo lost >/file"]);
    let look = ["exec", "app", "sh", "-c", "cat /srv/version /data/file; ls /file 2>/dev/null || echo none"];
    assert_eq!(home.ok(&look), "1\nkept\n/file\n");
    assert_eq!(home.ok(&["update", "app", "--to", "made.smolmachine"]), "app\n");
    assert_eq!(home.ok(&look), "2\nkept\nnone\n");
    // One that is stopped starts as the new one.
    home.ok(&["stop", "app"]);
    home.ok(&["update", "app", "--to", &format!("./{old}")]);
    assert!(home.ok(&["ps", "-a"]).contains("stopped"));
    home.ok(&["start", "app"]);
    assert_eq!(home.ok(&look), "1\nkept\nnone\n");
}

#[test]
fn a_version_that_does_not_start_leaves_the_machine_as_it_was() {
    let home = Home::new("soft");
    let old = build(&home, 1, "echo up; exec sleep 99999");
    home.ok(&["run", "-d", "--name", "app", "-v", "data:/data", &format!("./{old}")]);
    home.ok(&["exec", "app", "sh", "-c", "echo kept >/data/file; echo own >/file"]);
    // Frozen with the place in use where the volume is to be.
    let new = build(&home, 2, "mkdir /data; exec >/data/log; exec sleep 99999");
    let said = home.fails(&["update", "app", "--to", &format!("./{new}")], 125);
    assert!(said.contains("goes on with its old version"), "{said}");
    let look = ["exec", "app", "sh", "-c", "cat /srv/version /data/file /file"];
    assert_eq!(home.ok(&look), "1\nkept\nown\n");
}
