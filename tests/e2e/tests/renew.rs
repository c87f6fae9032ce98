//! Machines are kept new: `outdated` says what there is newer of, `rebuild` builds the definition in a file
//! again, `update` moves machines over. The packages are a repository's of the test's own, through apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use artifact::{CopyCheck, MachineFile, MachineFileWriter, SectionHead, SectionKind};
use e2e::oci::{Registry, layout_of};
use e2e::{Home, text};
use serde_json::Value;
use sha2::{Digest, Sha256};

const DEFINITION: &str = "\
name = \"app\"
memory = \"128MiB\"
[root]
packages = [\"tool\"]
files = { \"note\" = \"/srv/note\" }
[run]
command = \"tool; exec sleep 100000\"
[ready]
log = \"tool\"
";

/// Debian's shell and what it is linked with.
const SHELL: [&str; 3] = ["/usr/bin/dash", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];

/// A Debian repository in a directory, and an apt that knows no other.
struct Repository {
    dir: PathBuf,
    config: PathBuf,
}

impl Repository {
    fn new(dir: PathBuf) -> Self {
        for name in ["pool", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let (config, shown) = (dir.join("apt.conf"), dir.display().to_string());
        fs::write(dir.join("sources.list"), format!("deb [trusted=yes] file:{shown} ./\n")).unwrap();
        let text = format!(
            "Dir::Etc::sourcelist \"{shown}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferencesparts \"-\";\nDir::State::lists \"{shown}/lists\";\nDir::Cache \"{shown}/cache\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
        );
        fs::write(&config, text).unwrap();
        let repository = Self { dir, config };
        repository.add_base();
        repository
    }

    /// The one essential package: this host's shell, busybox's tools, and a dpkg that has nothing to do, since no
    /// package here has scripts. (busybox's own shell would run busybox's dpkg instead.)
    fn add_base(&self) {
        let root = self.dir.join("base");
        let bin = root.join("usr/bin");
        for name in ["usr/bin", "usr/sbin", "etc", "root", "srv", "tmp", "var/tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::write(bin.join("busybox"), assets::busybox()).unwrap();
        for path in SHELL {
            let to = root.join(path.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(path, to).unwrap();
        }
        std::os::unix::fs::symlink("dash", bin.join("sh")).unwrap();
        for name in ["sed", "rm", "chmod", "sleep", "cat", "true"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        fs::write(bin.join("dpkg"), "#!/bin/sh\n").unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        for program in ["busybox", "dpkg"] {
            executable(&bin.join(program));
        }
        self.pack(&root, "base", "1", "Essential: yes\n");
    }

    /// `tool`, which prints its version.
    fn add_tool(&self, version: &str) {
        let root = self.dir.join(format!("tool-{version}"));
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), format!("#!/bin/sh\necho tool {version}\n")).unwrap();
        executable(&root.join("usr/bin/tool"));
        self.pack(&root, "tool", version, "Depends: base\n");
        self.publish();
    }

    fn pack(&self, root: &Path, name: &str, version: &str, more: &str) {
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n{more}\
             Description: for a test\n"
        );
        fs::write(root.join("DEBIAN/control"), &control).unwrap();
        let file = format!("pool/{name}_{version}_all.deb");
        let mut packing = Command::new("dpkg-deb");
        packing.args(["-Znone", "--root-owner-group", "--build"]).arg(root).arg(self.dir.join(&file));
        let packed = packing.output().unwrap();
        assert!(packed.status.success(), "{}", text(&packed.stderr));
        let bytes = fs::read(self.dir.join(&file)).unwrap();
        let index = fs::read_to_string(self.dir.join("Packages")).unwrap_or_default();
        let (size, hash) = (bytes.len(), hex(&bytes));
        let index = format!("{index}{control}Filename: ./{file}\nSize: {size}\nSHA256: {hash}\n\n");
        fs::write(self.dir.join("Packages"), index).unwrap();
    }

    /// `apt-get update`.
    fn publish(&self) {
        let index = fs::read(self.dir.join("Packages")).unwrap();
        let release = format!("Codename: test\nSHA256:\n {} {} Packages\n", hex(&index), index.len());
        fs::write(self.dir.join("Release"), release).unwrap();
        let updated = Command::new("apt-get").arg("update").env("APT_CONFIG", &self.config).output().unwrap();
        assert!(updated.status.success(), "{}", text(&updated.stderr));
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A home whose apt knows one repository; `None`, said aloud, on a host without apt.
struct World {
    home: Home,
    repository: Repository,
}

impl World {
    fn new() -> Option<Self> {
        let apt = Command::new("apt-get").arg("--version").output().is_ok();
        if !apt || !SHELL.iter().all(|path| Path::new(path).exists()) {
            eprintln!("skipped: this host is no Debian");
            return None;
        }
        let home = Home::new("soft");
        let repository = Repository::new(home.path("repository"));
        repository.add_tool("1");
        Some(Self { home, repository })
    }

    fn run(&self, args: &[&str], code: i32) -> Output {
        let done = self.home.command(args).env("APT_CONFIG", &self.repository.config).output().unwrap();
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert_eq!(done.status.code(), Some(code), "smolvm {args:?}:\n{out}\n{err}");
        done
    }

    fn ok(&self, args: &[&str]) -> String {
        text(&self.run(args, 0).stdout)
    }

    fn says(&self, args: &[&str], code: i32) -> String {
        text(&self.run(args, code).stderr)
    }

    fn json(&self, args: &[&str], code: i32) -> Value {
        serde_json::from_slice(&self.run(&[args, &["--json"]].concat(), code).stdout).unwrap()
    }
}

/// Names and their newer parts.
fn rows(value: &Value) -> Vec<(String, Vec<String>)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let part =
        |part: &Value| format!("{} {} {}", word(&part["name"]), word(&part["have"]), word(&part["now"]));
    let parts = |row: &Value| row["outdated"].as_array().unwrap().iter().map(part).collect();
    value.as_array().unwrap().iter().map(|row| (word(&row["name"]), parts(row))).collect()
}

#[test]
fn a_patched_package_reaches_machines_that_keep_their_data() {
    let Some(world) = World::new() else { return };
    let home = &world.home;
    fs::write(home.path("Smolfile"), DEFINITION).unwrap();
    fs::write(home.path("note"), "note 1\n").unwrap();
    world.ok(&["build", "-q"]);
    home.ok(&["run", "-d", "--name", "web", "-v", "data:/data", "app"]);
    home.ok(&["exec", "web", "sh", "-c", "echo kept >/data/file"]);
    let nothing = |name: &str| (name.to_owned(), Vec::<String>::new());
    assert_eq!(rows(&world.json(&["outdated"], 0)), [nothing("app"), nothing("web")]);

    world.repository.add_tool("2");
    let old = |name: &str| (name.to_owned(), vec!["tool 1 2".to_owned()]);
    assert_eq!(rows(&world.json(&["outdated"], 1)), [old("app"), old("web")]);
    assert_eq!(text(&world.run(&["outdated", "-q", "web"], 1).stdout), "web\n");
    let table = text(&world.run(&["outdated"], 1).stdout);
    assert!(table.starts_with("NAME  KIND     PART  HAVE  NOW\napp   file     tool  1     2\n"), "{table}");

    let before = fs::read(home.path("app.smolmachine")).unwrap();
    let said = world.says(&["rebuild", "./app.smolmachine"], 125);
    assert!(said.contains("note") && said.contains("--sources DIR"), "{said}");
    assert!(fs::read(home.path("app.smolmachine")).unwrap() == before, "the old file is as it was");
    let done = world.json(&["rebuild", "--sources", ".", "app"], 0);
    let change = &done[0]["changes"][0];
    assert_eq!(
        (&change["name"], &change["have"], &change["now"]),
        (&"tool".into(), &"1".into(), &"2".into())
    );
    assert_eq!(done[0]["machines"], serde_json::json!(["web"]));
    assert!(
        home.leftovers().is_empty()
            && home
                .path("home/cache")
                .read_dir()
                .unwrap()
                .flatten()
                .all(|entry| !entry.file_name().to_string_lossy().ends_with(".smolmachine"))
    );
    assert_eq!(rows(&world.json(&["outdated"], 1)), [nothing("app"), old("web")]);

    assert_eq!(home.ok(&["update", "web", "--to", "app"]), "web\n");
    let look = ["exec", "web", "sh", "-c", "tool; cat /srv/note /data/file"];
    assert_eq!(home.ok(&look), "tool 2\nnote 1\nkept\n");
    assert_eq!(rows(&world.json(&["outdated"], 0)), [nothing("app"), nothing("web")]);
    // The file that the user has is still the old one: its turn, with the machines that run from it.
    home.ok(&["update", "web", "--to", "./app.smolmachine"]);
    assert_eq!(home.ok(&["exec", "web", "tool"]), "tool 1\n");
    fs::write(home.path("note"), "note 2\n").unwrap();
    let said = world.says(&["rebuild", "--sources", ".", "--machines", "./app.smolmachine"], 0);
    for told in ["tool: 1 -> 2", "--sources are not those", "`web` runs the new one"] {
        assert!(said.contains(told), "{told}: {said}");
    }
    assert_eq!(home.ok(&look), "tool 2\nnote 2\nkept\n");
    home.ok(&["verify", "./app.smolmachine"]);
}

#[test]
fn a_version_that_the_definition_pins_is_no_older_than_its_pin() {
    let Some(world) = World::new() else { return };
    let home = &world.home;
    fs::write(home.path("note"), "").unwrap();
    fs::write(home.path("Smolfile"), DEFINITION.replace("[\"tool\"]", "[\"tool=1*\"]")).unwrap();
    world.ok(&["build", "-q"]);
    world.repository.add_tool("2");
    assert_eq!(rows(&world.json(&["outdated", "app"], 0)), [("app".to_owned(), vec![])]);
    world.repository.add_tool("1.1");
    assert_eq!(
        rows(&world.json(&["outdated", "app"], 1)),
        [("app".to_owned(), vec!["tool 1 1.1".to_owned()])]
    );
    world.ok(&["rebuild", "-q", "--sources", ".", "app"]);
    assert_eq!(home.ok(&["run", "app", "--", "tool"]), "tool 1.1\n");
    assert_eq!(rows(&world.json(&["outdated", "app"], 0)), [("app".to_owned(), vec![])]);
}

/// The file with another text where its lock says `key`.
fn with_lock(from: &Path, to: &Path, key: &str, value: &str) {
    let file = MachineFile::open_path(from).unwrap();
    let mut writer = MachineFileWriter::create(to).unwrap();
    for section in file.sections() {
        if section.kind() == Some(SectionKind::Lock) {
            let lock = text(&file.read_section(section, 1 << 20).unwrap());
            let changed = |line: &str| match line.starts_with(key) {
                true => format!("{key} = \"{value}\"\n"),
                false => format!("{line}\n"),
            };
            let lock: String = lock.lines().map(changed).collect();
            writer.add_bytes(SectionHead::like(section), lock.as_bytes()).unwrap();
        } else {
            writer.copy_section(&file, section, CopyCheck::Rehash).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn a_file_of_an_earlier_kernel_is_built_again_without_its_sources() {
    let home = Home::new("soft");
    let definition = "memory = \"64MiB\"\n[build]\nsteps = [\"echo made >/srv/made\"]\n[run]\n\
                      command = \"echo up; exec sleep 100000\"\n[ready]\nlog = \"up\"\n";
    fs::create_dir(home.path("site")).unwrap();
    fs::write(home.path("site/Smolfile"), definition).unwrap();
    home.ok(&["build", "-q", "-f", "site/Smolfile"]);
    let (new, old) = (home.path("site.smolmachine"), home.path("old.smolmachine"));
    with_lock(&new, &home.path("half.smolmachine"), "kernel_release", "6.1.2-smolvm");
    with_lock(&home.path("half.smolmachine"), &old, "vmlinux_blake3", "00");
    let json = |args: &[&str], code| -> Value {
        let done = home.run(&[args, &["--json"]].concat());
        assert_eq!(done.status.code(), Some(code), "{}", text(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap()
    };
    assert_eq!(json(&["outdated", "./site.smolmachine"], 0)[0]["outdated"], serde_json::json!([]));
    let found = json(&["outdated", "./old.smolmachine"], 1);
    let kernel = &found[0]["outdated"][0];
    assert_eq!((&kernel["kind"], &kernel["have"]), (&"kernel".into(), &"6.1.2-smolvm".into()));
    let done = json(&["rebuild", "./old.smolmachine"], 0);
    assert_eq!(done[0]["changes"][0]["kind"], "kernel");
    assert_eq!(json(&["outdated", "./old.smolmachine"], 0)[0]["outdated"], serde_json::json!([]));
    // Its name is the first one's, which was the name of the Smolfile's directory.
    assert_eq!(json(&["inspect", "./old.smolmachine"], 0)["machine"]["name"], "site");
    assert_eq!(home.ok(&["run", "./old.smolmachine", "--", "cat", "/srv/made"]), "made\n");
    // One that a later smolvm made is not this one's to judge.
    with_lock(&new, &home.path("half.smolmachine"), "kernel_release", "99.1.2-smolvm");
    with_lock(&home.path("half.smolmachine"), &old, "vmlinux_blake3", "00");
    assert_eq!(json(&["outdated", "./old.smolmachine"], 0)[0]["outdated"], serde_json::json!([]));
}

#[test]
fn what_would_lose_something_is_not_built_again() {
    let home = Home::new("soft");
    let definition = |files: &str| {
        format!(
            "name = \"app\"\nmemory = \"64MiB\"\n[root]\nfiles = {{ {files} }}\n[run]\n\
             command = \"echo up; exec sleep 100000\"\n[ready]\nlog = \"up\"\n"
        )
    };
    fs::create_dir_all(home.path("site/own")).unwrap();
    fs::write(home.path("outside"), "").unwrap();
    fs::write(home.path("site/Smolfile"), definition("\"../outside\" = \"/srv/outside\"")).unwrap();
    home.ok(&["build", "-q", "-f", "site/Smolfile"]);
    let said = home.fails(&["rebuild", "--sources", "site", "app"], 125);
    assert!(said.contains("../outside") && said.contains("line 4") && said.contains("--sources"), "{said}");
    fs::write(home.path("site/Smolfile"), definition("\"own\" = \"/srv/own\"")).unwrap();
    home.ok(&["build", "-q", "-f", "site/Smolfile"]);
    let said = home.fails(&["rebuild", "--sources", ".", "app"], 125);
    assert!(said.contains("own") && said.contains("not there"), "{said}");
    // What a machine did since it was resumed is in no definition.
    home.ok(&["run", "-d", "--name", "m", "app"]);
    home.ok(&["snapshot", "m", "-o", "lived.smolmachine"]);
    home.ok(&["snapshot", "m", "--incremental", "-o", "changes.smolmachine"]);
    let before = fs::read(home.path("lived.smolmachine")).unwrap();
    for (file, why) in [("./lived.smolmachine", "would be lost"), ("./changes.smolmachine", "changes over")] {
        let said = home.fails(&["rebuild", "--sources", "site", file], 125);
        assert!(said.contains(why), "{said}");
        home.ok(&["outdated", file]);
    }
    assert!(fs::read(home.path("lived.smolmachine")).unwrap() == before);
    let said = home.fails(&["rebuild", "-o", "x", "app", "./lived.smolmachine"], 125);
    assert!(said.contains("-o names one file"), "{said}");
}

#[test]
fn an_image_that_moved_is_seen_by_who_named_it() {
    let home = Home::new("soft");
    layout_of(&home.path("img"), "one");
    let registry = Registry::serve(home.path("img"));
    let image = format!("{}/team/app:1", registry.host);
    let definition = format!(
        "name = \"app\"\nmemory = \"128MiB\"\n[root]\nimage = \"{image}\"\n[run]\n\
         command = \"while :; do /bin/busybox sleep 1; done\"\n"
    );
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    home.ok(&["outdated"]);
    fs::remove_dir_all(home.path("img")).unwrap();
    layout_of(&home.path("img"), "two");
    let found = home.run(&["outdated", "--json"]);
    assert_eq!(found.status.code(), Some(1), "{}", text(&found.stderr));
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found[0]["outdated"][0]["kind"], "image");
    assert_eq!(found[0]["outdated"][0]["name"], image.as_str());
    home.ok(&["rebuild", "-q", "app"]);
    home.ok(&["outdated"]);
    let command = ["run", "app", "--", "/bin/busybox", "sh", "-c", "echo $WHO"];
    assert_eq!(home.ok(&command), "two\n");
    // The same file in another home, where nobody named the image: nobody is asked.
    let other = Home::new("soft");
    fs::copy(home.path("app.smolmachine"), other.path("app.smolmachine")).unwrap();
    other.ok(&["import", "./app.smolmachine"]);
    let asked = registry.asked();
    for args in [&["outdated"][..], &["outdated", "./app.smolmachine"]] {
        let done = other.run(args);
        assert!(done.status.success(), "{}", text(&done.stderr));
        assert!(text(&done.stderr).contains("no registry is asked"), "{}", text(&done.stderr));
    }
    assert_eq!(registry.asked(), asked);
}
