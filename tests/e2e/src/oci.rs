//! Container images made here, and a registry on loopback that has one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image of busybox that says everything an image can say about how it runs.
pub fn layout(dir: &Path) {
    layout_of(dir, "image")
}

/// The same with this word in `WHO`: another word, another image.
pub fn layout_of(dir: &Path, who: &str) {
    layout_with(dir, who, |_| ());
}

/// [`layout_of`] with changes of its configuration's `config`.
pub fn layout_with(dir: &Path, who: &str, change: impl Fn(&mut Value)) {
    let image = image(dir, who, "amd64", change);
    name(dir, image);
}

/// One name for the images of several processors, given as (architecture, `WHO`).
pub fn layout_for(dir: &Path, images: &[(&str, &str)]) {
    let manifests = images.iter().map(|(architecture, who)| {
        let mut image = image(dir, who, architecture, |_| ());
        image["platform"] = json!({ "os": "linux", "architecture": architecture });
        image
    });
    let manifests: Vec<Value> = manifests.collect();
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
    name(dir, blob(dir, "index.v1+json", index.to_string().as_bytes()));
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Keeps a blob in the layout; its descriptor.
fn blob(dir: &Path, kind: &str, bytes: &[u8]) -> Value {
    let (blobs, hex) = (dir.join("blobs/sha256"), digest(bytes));
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&hex), bytes).unwrap();
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{hex}"), "size": bytes.len() })
}

/// Calls it `1` in the layout.
fn name(dir: &Path, mut descriptor: Value) {
    descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
}

fn image(dir: &Path, who: &str, architecture: &str, change: impl Fn(&mut Value)) -> Value {
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |path: &str, mode, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data).unwrap();
    };
    put("bin/busybox", 0o755, &assets::busybox());
    put("bin/sh", 0o755, b"#!/bin/busybox sh\nexec /bin/busybox sh \"$@\"\n");
    put("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n");
    put("entry", 0o755, b"#!/bin/busybox sh\necho \"$@ $(/bin/busybox id -u) $(/bin/busybox pwd) $WHO\"\n");
    let layer = tar.into_inner().unwrap();
    let mut config = json!({ "os": "linux", "architecture": architecture,
        "config": { "Entrypoint": ["/entry"], "Cmd": ["default"], "Env": [format!("WHO={who}")], "User": "app", "WorkingDir": "/srv/app", "ExposedPorts": { "8080/tcp": {}, "53/udp": {} } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] } });
    change(&mut config["config"]);
    let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(dir, "config.v1+json", config.to_string().as_bytes()), "layers": [blob(dir, "layer.v1.tar", &layer)] });
    blob(dir, "manifest.v1+json", manifest.to_string().as_bytes())
}

/// A registry whose every name and tag is the image of one layout, as it is at each request.
pub struct Registry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    asked: Arc<AtomicUsize>,
}

impl Registry {
    /// Serves the layout `dir`, as long as the test's process lives.
    pub fn serve(dir: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("its address").to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = answer(stream, &dir);
            }
        });
        Self { host, asked }
    }

    /// Connections so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// One request of a connection, answered out of the layout (Distribution specification, "Pulling").
fn answer(stream: TcpStream, dir: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
    let manifest = &index["manifests"][0];
    let (digest, kind) = match path.contains("/manifests/") {
        true if !last.starts_with("sha256:") => (manifest["digest"].as_str().unwrap_or_default(), "manifest"),
        true => (last, "manifest"),
        false => (last, "blob"),
    };
    let body = match path {
        "/v2/" => Some(b"{}".to_vec()),
        _ => digest.strip_prefix("sha256:").and_then(|hex| fs::read(dir.join("blobs/sha256").join(hex)).ok()),
    };
    let kind = match kind {
        "manifest" => "application/vnd.oci.image.manifest.v1+json",
        _ => "application/octet-stream",
    };
    let (status, body) = body.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    let mut out = &stream;
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    out.write_all(&body)
}
