//! Container images as a user runs them: a layout made here, and the same from Debian's registry.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use e2e::oci::layout;
use e2e::{Home, engines, text};

#[test]
fn an_image_runs_as_its_configuration_says() {
    for engine in engines() {
        let home = Home::new(engine);
        layout(&home.path("img"));
        assert_eq!(home.ok(&["run", "oci:img:1"]), "default 1000 /srv/app image\n");
        assert_eq!(
            home.ok(&["run", "-e", "WHO=me", "-u", "0", "-w", "/", "oci:img:1", "--", "a", "b"]),
            "a b 0 / me\n"
        );
        assert!(home.fails(&["run", "oci:img:2"], 125).contains("there are 1"));
        assert_eq!(home.ok(&["images"]).matches(" oci ").count(), 1, "one base, however often it runs");
    }
}

#[test]
fn a_definition_may_name_an_image() {
    let home = Home::new("soft");
    layout(&home.path("img"));
    let text = "[root]\nimage = \"oci:img:1\"\n[run]\ncommand = \"while :; do /bin/busybox sleep 1; done\"\nenv = { WHO = \"definition\" }\n";
    fs::write(home.path("Smolfile"), text).unwrap();
    home.ok(&["build", "-o", "x.smolmachine"]);
    let lock = fs::read_to_string(home.path("Smolfile.lock")).unwrap();
    assert!(lock.contains("[image]") && lock.contains("layers = [\"sha256:"), "{lock}");
    let name = home.ok(&["run", "-d", "x.smolmachine"]);
    let command = ["exec", name.trim(), "/bin/busybox", "sh", "-c", "echo $(/bin/busybox id -u) $PWD $WHO"];
    assert_eq!(home.ok(&command), "1000 /srv/app definition\n");
}

/// There is no frozen state in the file that it was booted from, and none is needed.
#[test]
fn a_machine_of_a_root_is_copied() {
    let home = Home::new("soft");
    fs::create_dir_all(home.path("root/bin")).unwrap();
    fs::write(home.path("root/bin/busybox"), assets::busybox()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(home.path("root/bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    home.ok(&["run", "-d", "--name", "m", "dir:root", "/bin/busybox", "sleep", "1000"]);
    home.ok(&["exec", "m", "/bin/busybox", "touch", "/mine"]);
    home.ok(&["fork", "-q", "m", "--name", "copy"]);
    home.ok(&["exec", "copy", "/bin/busybox", "test", "-e", "/mine"]);
}

#[test]
fn a_directory_and_a_tar_are_roots() {
    let home = Home::new("soft");
    fs::create_dir_all(home.path("root/bin")).unwrap();
    fs::write(home.path("root/bin/busybox"), assets::busybox()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(home.path("root/bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(home.ok(&["run", "dir:root", "/bin/busybox", "echo", "dir"]), "dir\n");
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", home.path("root")).unwrap();
    fs::write(home.path("root.tar"), tar.into_inner().unwrap()).unwrap();
    let mut command = home.command(&["run", "-", "/bin/busybox", "echo", "tar"]);
    let output = command.stdin(fs::File::open(home.path("root.tar")).unwrap()).output().unwrap();
    assert_eq!(text(&output.stdout), "tar\n", "{}", text(&output.stderr));
}

/// A child that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether Debian's registry and skopeo are here, installed when that is possible.
fn tools() -> bool {
    let there = |program: &str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    if there("docker-registry") && there("skopeo") {
        return true;
    }
    let install = ["install", "-y", "--no-install-recommends", "docker-registry", "skopeo"];
    let _ = Command::new("apt-get").args(install).stdout(Stdio::null()).stderr(Stdio::null()).status();
    there("docker-registry") && there("skopeo")
}

#[test]
fn a_registrys_image_runs_and_is_transferred_once() {
    if !tools() {
        eprintln!("skipped: docker-registry and skopeo are not here and cannot be installed (apt, root)");
        return;
    }
    let home = Home::new("soft");
    layout(&home.path("img"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\nlog: {{level: error}}\n",
        home.path("registry").display()
    );
    fs::write(home.path("registry.yml"), config).unwrap();
    let mut registry = Command::new("docker-registry");
    registry.arg("serve").arg(home.path("registry.yml")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = Ends(registry.spawn().unwrap());
    let target = format!("127.0.0.1:{port}/team/app:1");
    let from = format!("oci:{}:1", home.path("img").display());
    let retry =
        ["copy", "--retry-times", "5", "--dest-tls-verify=false", &from, &format!("docker://{target}")];
    if !Command::new("skopeo").args(retry).stdout(Stdio::null()).status().unwrap().success() {
        let _ = server.0.kill();
        let mut said = String::new();
        let _ = server.0.stderr.take().map(|mut e| e.read_to_string(&mut said));
        panic!("pushing to the registry failed; it said: {said}");
    }
    assert_eq!(home.ok(&["run", &target, "x"]), "x 1000 /srv/app image\n");
    let error = home.fails(&["run", &format!("127.0.0.1:{port}/team/app:2")], 125);
    assert!(error.contains("team/app") && error.contains(&format!("127.0.0.1:{port}")), "{error}");
    // What skopeo makes of it, too.
    let archive = format!("docker-archive:{}:app:1", home.path("a.tar").display());
    assert!(
        Command::new("skopeo")
            .args(["copy", &from, &archive])
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(home.ok(&["run", "docker-archive:a.tar", "y"]), "y 1000 /srv/app image\n");
}
