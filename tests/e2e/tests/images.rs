//! Container images as a user runs them: a layout made here, and the same from Debian's registry.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use e2e::oci::{layout, layout_with};
use e2e::{Home, debian, engines, text};

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
        let listed = home.ok(&["images"]);
        assert_eq!(listed.matches(" oci ").count(), 1, "one base, however often it runs");
        assert!(listed.contains(" (img) "), "{listed}");
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

#[test]
fn a_registrys_image_runs_and_is_transferred_once() {
    if !debian::have(&["docker-registry", "skopeo"], &["docker-registry", "skopeo"]) {
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

#[test]
fn an_images_stop_signal_is_what_ends_it_and_its_ports_are_published() {
    let home = Home::new("soft");
    layout_with(&home.path("img"), "image", |config| {
        config["StopSignal"] = "SIGUSR1".into();
        config["User"] = "root".into();
        let wait = "trap 'echo ended by USR1 >/ended; exit 0' USR1; trap 'echo ended by TERM >/ended; exit 0' TERM; \
                    echo >/trapped; while :; do /bin/busybox sleep 0.05; done";
        config["Entrypoint"] = vec!["/bin/busybox", "sh", "-c", wait].into();
        config["Cmd"] = Vec::<String>::new().into();
    });
    home.ok(&["run", "-d", "--name", "m", "-P", "oci:img:1"]);
    let told: serde_json::Value = serde_json::from_str(&home.ok(&["inspect", "m", "--json"])).expect("JSON");
    let ports = told.to_string();
    // 53/udp is none of TCP's.
    assert!(ports.contains("8080") && !ports.contains(",53]"), "{told}");
    home.ok(&["exec", "m", "/bin/busybox", "sh", "-c", "until test -e /trapped; do :; done"]);
    home.ok(&["stop", "m"]);
    home.ok(&["start", "m"]);
    assert_eq!(home.ok(&["exec", "m", "/bin/busybox", "cat", "/ended"]), "ended by USR1\n");
    // With words of one's own behind the entrypoint, too; and they run again after a start.
    home.ok(&["run", "-d", "--name", "n", "oci:img:1", "a-word"]);
    home.ok(&["exec", "n", "/bin/busybox", "sh", "-c", "until test -e /trapped; do :; done"]);
    home.ok(&["stop", "n"]);
    home.ok(&["start", "n"]);
    assert_eq!(home.ok(&["exec", "n", "/bin/busybox", "cat", "/ended"]), "ended by USR1\n");
    let command = "until /bin/busybox ps | /bin/busybox grep -q '[a]-word'; do :; done";
    home.ok(&["exec", "n", "/bin/busybox", "sh", "-c", command]);
}

/// A root of busybox for other tools to make an image of.
fn root(dir: &std::path::Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(dir.join("bin/busybox"), assets::busybox()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_umoci_and_buildah_make_runs() {
    let home = Home::new("soft");
    root(&home.path("root"));
    fs::write(home.path("gone"), "gone").unwrap();
    fs::write(home.path("kept"), "kept").unwrap();
    let sh = |script: &str| {
        let run = Command::new("sh").args(["-e", "-c", script]).current_dir(home.path("")).output().unwrap();
        assert!(run.status.success(), "{script}\n{}", text(&run.stderr));
    };
    let show = "cat /kept; test ! -e /gone && echo $WHO";
    let run = |image: &str| home.ok(&["run", image, "/bin/busybox", "sh", "-c", show]);
    if debian::have(&["umoci"], &["umoci"]) {
        // The second layer takes away what the first brought.
        sh("umoci init --layout u; umoci new --image u:1; umoci insert --rootless --image u:1 root / \
            && umoci insert --rootless --image u:1 kept /kept && umoci insert --rootless --image u:1 gone /gone \
            && umoci insert --rootless --image u:1 --whiteout /gone; \
            umoci config --image u:1 --config.env WHO=umoci");
        assert_eq!(run("oci:u:1"), "keptumoci\n");
    }
    if debian::have(&["buildah"], &["buildah"]) {
        let buildah = "buildah --root $PWD/b/root --runroot $PWD/b/run --storage-driver vfs";
        sh(&format!(
            "c=$({buildah} from scratch); {buildah} copy $c root /; {buildah} copy $c kept /kept; \
             {buildah} config --env WHO=buildah $c; {buildah} commit --format oci $c oci:made:1; \
             {buildah} commit --format docker $c docker-archive:made.tar; {buildah} rm $c"
        ));
        assert_eq!(run("oci:made:1"), "keptbuildah\n");
        assert_eq!(run("docker-archive:made.tar"), "keptbuildah\n");
    }
}

/// Peers took such words for commands, mounts and paths of the host.
#[test]
fn what_an_images_labels_and_volumes_say_touches_nothing_of_the_host() {
    let home = Home::new("soft");
    let mark = home.path("touched");
    let touch = format!("touch {}", mark.display());
    layout_with(&home.path("img"), "image", |config| {
        config["Labels"] = serde_json::json!({
            "run": &touch, "RUN": &touch, "INSTALL": &touch, "io.containers.autoupdate": "image", "annotation": &touch,
            "smolvm.mount": format!("{}:/host", home.path("").display()), "devcontainer.metadata": &touch,
        });
        config["Volumes"] =
            serde_json::json!({ "/data": {}, "../../outside": {}, mark.to_str().unwrap(): {} });
        config["Healthcheck"] = serde_json::json!({ "Test": ["CMD-SHELL", &touch], "Interval": 1 });
        config["OnBuild"] = serde_json::json!([format!("RUN {touch}")]);
        config["Shell"] = serde_json::json!(["/bin/sh", "-c", &touch]);
    });
    let entry = ["run", "oci:img:1", "x"];
    assert_eq!(home.ok(&entry), "x 1000 /srv/app image\n");
    home.ok(&["run", "-d", "--name", "m", "oci:img:1", "y"]);
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["volume", "ls", "--json"])).expect("JSON");
    assert_eq!(rows, serde_json::json!([]), "a volume that nobody asked for");
    assert!(!mark.exists());
}
