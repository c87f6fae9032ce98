//! Layouts, archives, platforms and what a configuration says.

use image::oci::ImageName;
use serde_json::json;

use crate::made::{Layer, MANIFEST, World, digest, text};

fn layer(word: &str) -> Vec<u8> {
    Layer::new().file("word", word).tar()
}

#[test]
fn tags_and_platforms_choose() {
    let world = World::new();
    let with = |word: &str, key: &str, value: serde_json::Value| {
        let mut manifest = world.image(&[layer(word)], json!({}), <[u8]>::to_vec);
        manifest[key] = value;
        manifest
    };
    let tag = |tag: &str| json!({ "org.opencontainers.image.ref.name": tag });
    world.index(vec![with("one", "annotations", tag("1")), with("two", "annotations", tag("2"))]);
    let word = |name: &str| Ok::<_, image::oci::OciError>(text(&world.unpack(&world.open(name)?)?.0, "word"));
    assert_eq!((word("oci:layout:1").unwrap(), word("oci:layout:2").unwrap()), ("one".into(), "two".into()));
    assert!(word("oci:layout").unwrap_err().to_string().contains("there are 1, 2"));
    assert!(word("oci:layout:3").unwrap_err().to_string().contains("`3`"));

    let platform = |os: &str, arch: &str| json!({ "os": os, "architecture": arch });
    world.index(vec![
        with("arm", "platform", platform("linux", "arm64")),
        with("amd", "platform", platform("linux", "amd64")),
    ]);
    assert_eq!(word("oci:layout").unwrap(), "amd");
    world.index(vec![
        with("arm", "platform", platform("linux", "arm64")),
        with("win", "platform", platform("windows", "amd64")),
    ]);
    assert!(word("oci:layout").unwrap_err().to_string().contains("linux/arm64, windows/amd64"));
}

#[test]
fn the_configuration_is_read() {
    let world = World::new();
    let config = json!({ "Entrypoint": ["/e"], "Cmd": null, "Env": ["A=1=2", "B"], "User": "app:grp",
        "WorkingDir": "/made/here", "StopSignal": "SIGQUIT", "ExposedPorts": { "80/tcp": {}, "53/udp": {} }, "Volumes": null });
    world.index(vec![world.image(&[layer("x")], config, <[u8]>::to_vec)]);
    let image = world.open("oci:layout").unwrap();
    let read = image.defaults();
    assert_eq!(read.argv(&["x".into()]), ["/e", "x"]);
    assert_eq!(read.env, [("A".into(), "1=2".into()), ("B".into(), String::new())]);
    assert_eq!((read.user.as_deref(), read.stop_signal), (Some("app:grp"), Some(3)));
    assert_eq!(read.ports, ["53/udp", "80/tcp"]);
    let (tree, _spool) = world.unpack(&image).unwrap();
    assert!(tree.lookup("made/here").is_some() && text(&tree, "etc/hosts").contains("localhost"));
    for bad in [json!({ "WorkingDir": "relative" }), json!({ "StopSignal": "SIGNOT" })] {
        world.index(vec![world.image(&[layer("x")], bad, <[u8]>::to_vec)]);
        assert!(world.open("oci:layout").is_err());
    }
}

#[test]
fn docker_archives_by_name_also_compressed_and_with_links() {
    let world = World::new();
    let config = |layer: &[u8]| {
        json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": [digest(layer)] } }).to_string()
    };
    let (one, two) = (layer("one"), layer("two"));
    let manifest = json!([
        { "Config": "one.json", "RepoTags": ["one:latest"], "Layers": ["1/layer.tar"] },
        { "Config": "two.json", "RepoTags": ["two:7", "docker.io/team/three:1"], "Layers": ["2/layer.tar"] },
    ]);
    let archive = Layer::new()
        .add(tar::EntryType::Regular, "real/layer.tar", &one, "")
        .symlink("1/layer.tar", "../real/layer.tar")
        .add(tar::EntryType::Regular, "2/layer.tar", &two, "")
        .file("one.json", &config(&one))
        .file("two.json", &config(&two))
        .file("manifest.json", &manifest.to_string())
        .tar();
    std::fs::write(world.path("plain.tar"), &archive).unwrap();
    std::fs::write(world.path("packed.tar.zst"), zstd::encode_all(&archive[..], 1).unwrap()).unwrap();
    for file in ["plain.tar", "packed.tar.zst"] {
        let long = ("docker.io/library/one", "one");
        let names = [("one", "one"), ("one:latest", "one"), long, ("two:7", "two"), ("team/three:1", "two")];
        for (name, word) in names {
            let image = world.open(&format!("docker-archive:{file}:{name}")).unwrap();
            assert_eq!(text(&world.unpack(&image).unwrap().0, "word"), word);
        }
    }
    let error = world.open("docker-archive:plain.tar").err().unwrap().to_string();
    assert!(error.contains("one:latest, two:7"), "{error}");
    std::fs::write(world.path("root.tar"), layer("x")).unwrap();
    assert!(world.open("docker-archive:root.tar").err().unwrap().to_string().contains("manifest.json"));
}

#[test]
fn names() {
    let of = |word: &str| ImageName::parse(word, "/base".as_ref()).map(|name| name.to_string());
    assert_eq!(of("debian:12").unwrap(), "docker.io/library/debian:12");
    assert_eq!(of("docker://localhost:5000/a/b").unwrap(), "localhost:5000/a/b:latest");
    assert_eq!(of("oci:img:1").unwrap(), "oci:/base/img:1");
    assert_eq!(of("docker-archive:a.tar:x:1").unwrap(), "docker-archive:/base/a.tar:x:1");
    for bad in ["", "oci:", "docker-archive:", "a.example/Up", "a b", "x@sha256:12"] {
        assert!(of(bad).is_err(), "{bad}");
    }
    let named = ImageName::parse("registry.example/team/App_1:2", "/".as_ref());
    assert!(named.is_err() || named.unwrap().machine_name() == "app_1");
}

#[test]
fn a_pinned_image_is_that_one_or_an_error() {
    let world = World::new();
    let first = world.image(&[layer("one")], json!({}), <[u8]>::to_vec);
    let second = world.image(&[layer("two")], json!({}), <[u8]>::to_vec);
    world.index(vec![second]);
    let name = ImageName::parse("oci:layout", world.dir.path()).unwrap();
    let open =
        |digest: &str| image::oci::Image::open(&name, &world.options(Default::default()), Some(digest));
    let image = open(first["digest"].as_str().unwrap()).unwrap();
    assert_eq!(text(&world.unpack(&image).unwrap().0, "word"), "one");
    assert_eq!(image.lock().manifest, first["digest"].as_str().unwrap());
    assert!(open(&digest(b"gone")).err().unwrap().to_string().contains("--update"));
    assert_eq!(first["mediaType"], MANIFEST);
}
