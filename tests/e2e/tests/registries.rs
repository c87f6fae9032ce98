//! Registries as companies have them (Debian's docker-registry): an authority of their own, logins, mirrors, images for
//! several processors.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::oci::{layout, layout_for};
use e2e::registry::{DockerRegistry, HTPASSWD, USER, certificates, token_server};
use e2e::{Home, debian, text};
use serde_json::json;

fn tools() -> bool {
    let packages = ["docker-registry", "skopeo", "openssl"];
    debian::have(&packages, &packages)
}

/// `run IMAGE x` with docker's and the user's configuration below this home.
fn run(home: &Home, image: &str, change: impl Fn(&mut Command)) -> Result<String, String> {
    let mut command = home.command(&["run", image, "x"]);
    command.env("DOCKER_CONFIG", home.path("docker")).env("XDG_CONFIG_HOME", home.path("config"));
    command.env_remove("REGISTRY_AUTH_FILE").env_remove("XDG_RUNTIME_DIR");
    change(&mut command);
    let output = command.output().expect("smolvm");
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

const RUNS: &str = "x 1000 /srv/app image\n";

#[test]
fn a_registry_with_an_authority_of_its_own() {
    if !tools() {
        return;
    }
    let home = Home::new("soft");
    layout(&home.path("img"));
    certificates(&home.path("tls"));
    let tls = |more: &str| {
        let at = |name: &str| home.path("tls").join(name).display().to_string();
        let (server, key) = (at("server.crt"), at("server.key"));
        format!("tls: {{certificate: {server}, key: {key}{}}}", more.replace("CA", &at("ca.crt")))
    };
    let registry = DockerRegistry::serve(&home.path("registry"), &tls(""), "");
    // skopeo takes no directory with keys that have no certificate.
    fs::create_dir(home.path("known")).unwrap();
    fs::copy(home.path("tls/ca.crt"), home.path("known/ca.crt")).unwrap();
    let cert_dir = home.path("known").display().to_string();
    registry.push(&home.path("img"), "team/app:1", &["--dest-cert-dir", &cert_dir]);
    let image = format!("{}/team/app:1", registry.host);
    let said = run(&home, &image, |_| ()).unwrap_err();
    assert!(
        said.contains("certificate") && said.contains(&format!("certs.d/{}/ca.crt", registry.host)),
        "{said}"
    );
    // What the message says.
    let own = home.path("config/containers/certs.d").join(&registry.host);
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("ca.crt"), "no certificate").unwrap();
    assert!(run(&home, &image, |_| ()).unwrap_err().contains("holds no certificate"));
    fs::copy(home.path("tls/ca.crt"), own.join("ca.crt")).unwrap();
    assert_eq!(run(&home, &image, |_| ()), Ok(RUNS.to_owned()));
    // And what OpenSSL's users know.
    fs::remove_dir_all(&own).unwrap();
    let ca = home.path("tls/ca.crt");
    assert_eq!(
        run(&home, &image, |c| {
            c.env("SSL_CERT_FILE", &ca);
        }),
        Ok(RUNS.to_owned())
    );

    // One that wants to know who asks, too.
    let strict = DockerRegistry::serve(&home.path("registry"), &tls(", clientcas: [CA]"), "");
    let image = format!("{}/team/app:1", strict.host);
    assert!(
        run(&home, &image, |c| {
            c.env("SSL_CERT_FILE", &ca);
        })
        .is_err()
    );
    let own = home.path("config/containers/certs.d").join(&strict.host);
    fs::create_dir_all(&own).unwrap();
    for name in ["ca.crt", "client.cert", "client.key"] {
        fs::copy(home.path("tls").join(name), own.join(name)).unwrap();
    }
    assert_eq!(run(&home, &image, |_| ()), Ok(RUNS.to_owned()));
    fs::remove_file(own.join("client.key")).unwrap();
    assert!(run(&home, &image, |_| ()).unwrap_err().contains("client.key"));
}

#[test]
fn logins_by_token_and_password_from_dockers_files_and_helpers() {
    if !tools() {
        return;
    }
    let home = Home::new("soft");
    layout(&home.path("img"));
    fs::write(home.path("htpasswd"), HTPASSWD).unwrap();
    let password = format!("htpasswd: {{realm: reg, path: {}}}", home.path("htpasswd").display());
    let (user, secret) = USER;
    for auth in [token_server(&home.path("token")), password] {
        let registry = DockerRegistry::serve(&home.path("registry"), "", &auth);
        let login = format!("{user}:{secret}");
        registry.push(&home.path("img"), "team/app:1", &["--dest-tls-verify=false", "--dest-creds", &login]);
        let image = format!("{}/team/app:1", registry.host);
        let docker = |config: serde_json::Value| {
            fs::create_dir_all(home.path("docker")).unwrap();
            fs::write(home.path("docker/config.json"), config.to_string()).unwrap();
        };
        docker(json!({}));
        let said = run(&home, &image, |_| ()).unwrap_err();
        assert!(said.contains("docker login"), "{said}");
        for (word, right) in [("wrong", false), (secret, true)] {
            let auth = STANDARD.encode(format!("{user}:{word}"));
            docker(json!({ "auths": { registry.host.as_str(): { "auth": auth } } }));
            let ran = run(&home, &image, |_| ());
            assert_eq!(ran.is_ok(), right, "{ran:?}");
        }
        // A program that knows it, for this registry or for all.
        let helper = home.path("bin/docker-credential-smolvm-test");
        fs::create_dir_all(home.path("bin")).unwrap();
        let answer = json!({ "ServerURL": "x", "Username": user, "Secret": secret });
        let script = format!(
            "#!/bin/sh\nread server\ntest \"$1\" = get && test \"$server\" = '{}' || exit 1\necho '{answer}'\n",
            registry.host
        );
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", home.path("bin").display(), std::env::var("PATH").unwrap());
        for config in [
            json!({ "credHelpers": { registry.host.as_str(): "smolvm-test" } }),
            json!({ "credsStore": "smolvm-test" }),
        ] {
            docker(config);
            let said = run(&home, &image, |_| ()).unwrap_err();
            assert!(said.contains("docker-credential-smolvm-test"), "not in PATH, and it says so: {said}");
            assert_eq!(
                run(&home, &image, |c| {
                    c.env("PATH", &path);
                }),
                Ok(RUNS.to_owned())
            );
        }
    }
}

#[test]
fn the_image_of_this_processor_is_taken_also_from_a_mirror() {
    if !tools() {
        return;
    }
    let home = Home::new("soft");
    layout_for(&home.path("multi"), &[("arm64", "wrong"), ("amd64", "right"), ("s390x", "wrong")]);
    layout_for(&home.path("others"), &[("arm64", "wrong"), ("s390x", "wrong")]);
    let registry = DockerRegistry::serve(&home.path("registry"), "", "");
    registry.push(&home.path("multi"), "cache/team/app:1", &["--dest-tls-verify=false"]);
    registry.push(&home.path("others"), "cache/team/app:2", &["--dest-tls-verify=false"]);
    fs::create_dir_all(home.path("home/config")).unwrap();
    let mirrors =
        format!("[registries.\"registry.invalid\"]\nmirrors = [\"http://{}/cache\"]\n", registry.host);
    fs::write(home.path("home/config/config.toml"), mirrors).unwrap();
    for host in [&format!("{}/cache", registry.host), "registry.invalid"] {
        assert_eq!(
            run(&home, &format!("{host}/team/app:1"), |_| ()),
            Ok("x 1000 /srv/app right\n".to_owned())
        );
    }
    let said = run(&home, &format!("{}/cache/team/app:2", registry.host), |_| ()).unwrap_err();
    assert!(said.contains("linux/arm64, linux/s390x") && said.contains("linux/amd64"), "{said}");
}
