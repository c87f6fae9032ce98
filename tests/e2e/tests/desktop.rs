//! examples/desktop-backend as its maker and its user go through it, with few articles: the program's own code, the
//! backend's own code, an update by a delta, and the notes kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Home, debian, program, text};

/// Python and sqlite, unpacked without their scripts.
const PACKAGES: [&str; 14] = [
    "dash",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libuuid1",
    "media-types",
    "python3.11-minimal",
    "zlib1g",
    "coreutils",
    "libssl3",
];

/// The example's directory.
fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/desktop-backend")
}

/// The definition with a root that is not configured, and few articles.
fn definition(root: &Path) -> String {
    let text = fs::read_to_string(example().join("Smolfile")).unwrap();
    let changed = [
        ("packages = [\"python3-minimal\", \"libpython3-stdlib\"]", format!("dir = \"{}\"", root.display())),
        ("/srv/articles.tsv\"]\n\n[run]", "/srv/articles.tsv 60\"]\n\n[run]".to_owned()),
    ];
    let text = changed.into_iter().fold(text, |text, (old, new)| {
        assert!(text.contains(old), "the example has changed: {old}");
        text.replace(old, &new)
    });
    text.replace("python3 -I", "python3.11 -I").replace("\"python3\", \"-I\"", "\"python3.11\", \"-I\"")
}

/// The desktop program, which finds smolvm in PATH as it does at its user's.
fn desktop(home: &Home, args: &[&str]) -> String {
    let mut command = Command::new("python3");
    command.arg("-I").arg(example().join("desktop.py")).args(["--file", "app.smolmachine"]).args(args);
    for (name, value) in home.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let dirs = program().parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&paths));
    command.env("PATH", std::env::join_paths(dirs).unwrap()).current_dir(home.path(""));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{args:?}: {}\n{}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

#[test]
fn the_backend_starts_ready_and_its_update_keeps_the_notes() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: this host has no Python for the desktop program");
        return;
    }
    let Some(root) = debian::root(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("desktop"), &PACKAGES) else {
        return;
    };
    let home = Home::new("soft");
    for version in ["1", "2"] {
        let site = home.path(version);
        fs::create_dir_all(site.join("backend")).unwrap();
        fs::write(site.join("Smolfile"), definition(&root)).unwrap();
        for name in ["make_articles.py", "server.py"] {
            let code = fs::read_to_string(example().join("backend").join(name)).unwrap();
            let code = code.replace("\nVERSION = 1\n", &format!("\nVERSION = {version}\n"));
            fs::write(site.join("backend").join(name), code).unwrap();
        }
        home.ok(&[
            "build",
            "-q",
            "-f",
            &format!("{version}/Smolfile"),
            "-o",
            &format!("app-{version}.smolmachine"),
        ]);
    }
    home.ok(&["delta", "create", "app-1.smolmachine", "app-2.smolmachine", "-o", "delta"]);
    fs::copy(home.path("app-1.smolmachine"), home.path("app.smolmachine")).unwrap();

    let said = desktop(&home, &["add buy bread", "related 7"]);
    assert!(said.starts_with("backend version 1: 60 articles, ready after "), "{said}");
    assert!(said.contains("  1  buy bread\n"), "{said}");
    assert_eq!(said.lines().last().unwrap().split(", ").count(), 5, "{said}");
    assert_eq!(home.ok(&["ps", "-a", "-q"]), "", "the machine ends with the program");
    let said = desktop(&home, &["--update", "delta", "add by version 2", "list"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("backend version 1") && lines[1] == "backend version 2", "{said}");
    assert_eq!(&lines[2..], ["  2  by version 2", "  1  buy bread", "  2  by version 2"], "{said}");
    assert!(
        fs::read(home.path("app.smolmachine")).unwrap() == fs::read(home.path("app-2.smolmachine")).unwrap()
    );
    // Left by a program that was killed: the next one takes its place.
    home.ok(&["run", "-d", "--name", "notes-backend", "-v", "notes-data:/data", "./app.smolmachine"]);
    let said = desktop(&home, &["list"]);
    assert!(
        said.starts_with("backend version 2") && said.ends_with("  1  buy bread\n  2  by version 2\n"),
        "{said}"
    );
}
