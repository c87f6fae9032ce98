//! What a hostile image may contain, and what becomes of it.

use std::fs;

use image::oci::{Document, MAX_DOCUMENT, OciError, parse_config, parse_document};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::made::{LAYER, Layer, MANIFEST, World, digest, paths};

fn refusal(result: Result<impl Sized, OciError>) -> String {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

fn refused(layer: Vec<u8>) -> String {
    refusal(World::new().tree_of(&[layer]))
}

#[test]
fn paths_never_lead_out() {
    let error = refused(Layer::new().file("../../etc/cron.d/x", "").tar());
    assert!(error.contains("layer 1 of 1 (sha256:") && error.contains("out of the image"), "{error}");
    let world = World::new();
    let outside = world.path("outside");
    let layer = Layer::new()
        .file("/absolute", "")
        .symlink("up", "../../../../../..")
        .file("up/x", "")
        .symlink("there", outside.to_str().unwrap())
        .dir("tmp");
    let tree = world.tree_of(&[layer.tar()]).unwrap();
    assert_eq!(paths(&tree), ["absolute", "there", "tmp", "up", "x"]);
    assert!(
        refused(Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "").tar())
            .contains("symbolic links")
    );
    assert!(refused(Layer::new().hard_link("x", "/etc/passwd").tar()).contains("not in the image"));
    assert!(!outside.exists());
}

#[test]
fn whiteouts_cannot_reach_above() {
    let tree = World::new().tree_of(&[Layer::new()
        .file("a", "")
        .file(".wh...", "")
        .file(".wh..", "")
        .file(".wh.", "")
        .tar()]);
    assert_eq!(paths(&tree.unwrap()), ["a"]);
}

#[test]
fn sizes_that_lie_cost_nothing() {
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    let mut layer = header.as_bytes().to_vec();
    layer.extend([0; 1024]);
    assert!(refused(layer).contains("larger than the limit"));
    let mut sparse = tar::Header::new_gnu();
    sparse.set_path("sparse").unwrap();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_size(0);
    sparse.set_cksum();
    assert!(refused([sparse.as_bytes().as_slice(), &[0; 1024]].concat()).contains("sparse"));
    // In the newer form: a terabyte, of which nothing is there.
    let keys =
        [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "1099511627776")];
    let newer = Layer::new().pax(&keys).file("sparse", "0\n").tar();
    assert!(refused(newer).contains("sparse"));
}

#[test]
fn a_million_files_are_a_million_names() {
    const FILES: usize = 1_000_000;
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let mut hash = Sha256::new();
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        std::io::Write::write_all(&mut packed, bytes).unwrap();
    };
    for i in 0..FILES {
        let mut header = tar::Header::new_gnu();
        header.set_path(format!("d/{i}")).unwrap();
        header.set_size(0);
        header.set_cksum();
        put(header.as_bytes());
    }
    put(&[0; 1024]);
    let diff_id = format!("sha256:{}", image::hex(&hash.finalize()));
    let packed = packed.finish().unwrap();
    let world = World::new();
    let config = json!({ "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = world.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    world.index(vec![world.manifest(config, vec![world.blob(LAYER, &packed)])]);
    let (tree, _spool) = world.unpack(&world.open("oci:layout").unwrap()).unwrap();
    // With the directory, and what every image is furnished with.
    assert_eq!(paths(&tree).len(), FILES + 1);
}

#[test]
fn a_bomb_is_refused() {
    // 1.1 GiB of zeros as the data of a directory: nothing is kept of them.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_path("d").unwrap();
    header.set_size((1 << 30) + (100 << 20));
    header.set_cksum();
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    std::io::Write::write_all(&mut packed, header.as_bytes()).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), (1 << 30) + (100 << 20) + 1024), &mut packed)
        .unwrap();
    let packed = packed.finish().unwrap();
    let world = World::new();
    world.index(vec![world.image(&[Vec::new()], json!({}), |_| packed.clone())]);
    assert!(refusal(world.unpack(&world.open("oci:layout").unwrap())).contains("decompression bomb"));
}

#[test]
fn attributes_do_not_add_up_without_end() {
    let value = vec![b'v'; 60 << 10];
    let mut layer = Layer::new();
    for i in 0..40 {
        layer = layer.xattr(&format!("user.{i}"), &value);
    }
    assert!(refused(layer.file("x", "").tar()).contains("larger than 1 MiB"));
}

#[test]
fn bytes_that_are_not_the_announced_ones_are_not_used() {
    let world = World::new();
    let manifest = world.image(&[Layer::new().file("a", "a").tar()], json!({}), <[u8]>::to_vec);
    world.index(vec![manifest.clone()]);
    let blobs = world.path("layout/blobs/sha256");
    let documents = fs::read_dir(&blobs).unwrap().map(|e| e.unwrap().path());
    for path in documents.collect::<Vec<_>>() {
        let good = fs::read(&path).unwrap();
        for bad in [
            good.iter().map(|b| if *b == b'a' { b'b' } else { *b }).collect::<Vec<u8>>(),
            good[..good.len() - 1].to_vec(),
            [&good[..], b" "].concat(),
        ] {
            fs::write(&path, bad).unwrap();
            let result = world.open("oci:layout").and_then(|image| world.unpack(&image));
            assert!(result.is_err(), "{}", path.display());
        }
        fs::write(&path, good).unwrap();
    }
    world.unpack(&world.open("oci:layout").unwrap()).unwrap();
}

#[test]
fn a_configuration_of_other_layers_is_noticed() {
    let world = World::new();
    let (layer, other) = (Layer::new().file("a", "").tar(), Layer::new().file("b", "").tar());
    let config = json!({ "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [digest(&other)] } });
    let config = world.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    world.index(vec![world.manifest(config, vec![world.blob(LAYER, &layer)])]);
    assert!(refusal(world.unpack(&world.open("oci:layout").unwrap())).contains("belongs to other layers"));
}

#[test]
fn documents_that_mean_two_things_or_none_are_refused() {
    let parse = |value: Value| parse_document(value.to_string().as_bytes());
    let descriptor = json!({ "mediaType": MANIFEST, "digest": digest(b""), "size": 0 });
    let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [], "config": descriptor });
    assert!(parse(both).unwrap_err().to_string().contains("at once"));
    assert!(
        parse(json!({ "schemaVersion": 1, "fsLayers": [] })).unwrap_err().to_string().contains("schema 1")
    );
    assert!(parse(json!({})).is_err() && parse_document(b"{").is_err() && parse_document(b"").is_err());
    let lying = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "manifests": [] });
    assert!(parse(lying).is_err());
    for odd in ["sha512:00", "sha256:../../etc/passwd", "md5:x"] {
        let layer = json!({ "mediaType": LAYER, "digest": odd, "size": 1 });
        assert!(
            parse(json!({ "schemaVersion": 2, "config": descriptor, "layers": [layer] })).is_err(),
            "{odd}"
        );
    }
    assert!(matches!(parse(json!({ "schemaVersion": 2, "manifests": [] })), Ok(Document::Index(_))));
    let artifact = json!({ "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "digest": digest(b""), "size": 1 });
    let helm = parse(json!({ "schemaVersion": 2, "config": descriptor, "layers": [artifact] }));
    assert!(helm.unwrap_err().to_string().contains("no container image"));
    assert!(
        parse_config(
            b"{\"os\":\"linux\",\"architecture\":\"arm64\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}",
            0
        )
        .unwrap_err()
        .to_string()
        .contains("linux/arm64")
    );
}

#[test]
fn indexes_without_end_and_huge_documents_end() {
    let world = World::new();
    let mut at = json!({ "mediaType": MANIFEST, "digest": digest(b"nothing"), "size": 7 });
    for _ in 0..6 {
        let index = json!({ "schemaVersion": 2, "manifests": [at] });
        at = world.blob(crate::made::INDEX, index.to_string().as_bytes());
    }
    world.index(vec![at]);
    assert!(refusal(world.open("oci:layout")).contains("without end"));
    fs::write(world.path("layout/index.json"), vec![b' '; MAX_DOCUMENT as usize + 1]).unwrap();
    assert!(refusal(world.open("oci:layout")).contains("larger than"));
}
