//! The Distribution protocol against a server of the test's own: tokens, mirrors, errors,
//! transfers that break. The real registry is in tests/e2e.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use image::oci::{Credentials, Image, ImageName, OciError, RegistryOptions};
use serde_json::json;

use crate::made::{Layer, World, text};

/// A registry that has one image, for who has the token.
struct Server {
    port: u16,
    paths: Arc<Mutex<Vec<String>>>,
}

/// Answers a path with headers, on this port.
type Answering = dyn Fn(&str, &HashMap<String, String>, u16) -> Answer + Send + Sync;

/// What a request gets: status, headers, body, and whether the body is cut off.
type Answer = (u16, String, Vec<u8>, bool);

impl Server {
    fn start(answer: impl Fn(&str, &HashMap<String, String>, u16) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let paths = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), paths.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, seen) = (answer.clone(), seen.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &*answer, &seen, port));
            }
        });
        Self { port, paths }
    }

    fn asked(&self, part: &str) -> usize {
        self.paths.lock().unwrap().iter().filter(|path| path.contains(part)).count()
    }
}

fn serve(mut stream: TcpStream, answer: &Answering, seen: &Mutex<Vec<String>>, port: u16) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (key, value) = line.split_once(": ").unwrap();
        headers.insert(key.to_ascii_lowercase(), value.to_owned());
    }
    seen.lock().unwrap().push(path.clone());
    let (status, more, body, cut) = answer(&path, &headers, port);
    let head =
        format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n", body.len());
    let body = if cut { &body[..body.len() / 2] } else { &body[..] };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// What a registry without secrets answers from a layout.
fn from_layout(world: &World) -> impl Fn(&str) -> Answer + Send + Sync + 'static {
    let layout = world.path("layout");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let top = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    move |path| {
        let reference = path.rsplit('/').next().unwrap();
        let digest = if reference == "1" { &top } else { reference };
        let found = digest
            .strip_prefix("sha256:")
            .and_then(|hex| fs::read(layout.join("blobs/sha256").join(hex)).ok());
        match found {
            Some(bytes) => (200, String::new(), bytes, false),
            None => (
                404,
                String::new(),
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such"}]}"#.to_vec(),
                false,
            ),
        }
    }
}

fn world() -> World {
    let world = World::new();
    let layer = Layer::new().file("word", "from afar").tar();
    world.index(vec![world.image(&[layer], json!({}), <[u8]>::to_vec)]);
    world
}

fn pull(world: &World, word: &str, registry: RegistryOptions) -> Result<String, OciError> {
    let name = ImageName::parse(word, "/".as_ref())?;
    let image = Image::open(&name, &world.options(registry), None)?;
    Ok(text(&world.unpack(&image)?.0, "word"))
}

#[test]
fn layers_are_transferred_once_and_shared() {
    let world = world();
    let answer = from_layout(&world);
    let server = Server::start(move |path, _, _| answer(path));
    let word = format!("127.0.0.1:{}/a/b:1", server.port);
    assert_eq!(pull(&world, &word, RegistryOptions::default()).unwrap(), "from afar");
    let blobs = server.asked("/blobs/");
    assert_eq!(pull(&world, &word, RegistryOptions::default()).unwrap(), "from afar");
    assert_eq!((server.asked("/blobs/"), blobs), (2, 2), "a configuration and a layer, once");
    let error = pull(&world, &format!("127.0.0.1:{}/a/b:nope", server.port), RegistryOptions::default());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("MANIFEST_UNKNOWN") && error.contains("a/b") && error.contains("127.0.0.1"),
        "{error}"
    );
}

#[test]
fn a_token_is_fetched_with_dockers_credentials() {
    let world = world();
    let answer = from_layout(&world);
    let server = Server::start(move |path, headers, port| {
        let authorization = headers.get("authorization").map(String::as_str);
        if path.starts_with("/token?") {
            let fine = authorization == Some("Basic YW5uOnNlY3JldA==")
                && path.contains("scope=repository%3Aa%2Fb%3Apull");
            return if fine {
                (200, String::new(), b"{\"token\":\"T\"}".to_vec(), false)
            } else {
                (401, String::new(), Vec::new(), false)
            };
        }
        if authorization == Some("Bearer T") || path == "/v2/" {
            return answer(path);
        }
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\",scope=\"repository:a/b:pull\"\r\n"
        );
        (401, challenge, Vec::new(), false)
    });
    let word = format!("127.0.0.1:{}/a/b:1", server.port);
    let error = pull(&world, &word, RegistryOptions::default()).unwrap_err().to_string();
    assert!(error.contains("docker login"), "{error}");
    let file = world.path("config.json");
    let auths = json!({ "auths": { format!("127.0.0.1:{}", server.port): { "auth": "YW5uOnNlY3JldA==" } } });
    fs::write(&file, auths.to_string()).unwrap();
    let registry = RegistryOptions { credentials: Credentials { files: vec![file] }, ..Default::default() };
    assert_eq!(pull(&world, &word, registry).unwrap(), "from afar");
}

#[test]
fn mirrors_come_first_and_broken_ones_are_passed_over() {
    let world = world();
    let answer = from_layout(&world);
    let mirror = Server::start(move |path, _, _| answer(path));
    let broken = Server::start(|_, _, _| (404, String::new(), Vec::new(), false));
    let mirrors =
        vec![format!("http://127.0.0.1:{}", broken.port), format!("http://127.0.0.1:{}/cache", mirror.port)];
    let registry =
        RegistryOptions { mirrors: [("registry.invalid".to_owned(), mirrors)].into(), ..Default::default() };
    assert_eq!(pull(&world, "registry.invalid/a/b:1", registry).unwrap(), "from afar");
    assert!(mirror.asked("/v2/cache/a/b/") > 0 && broken.asked("/manifests/1") > 0);
}

#[test]
fn a_transfer_that_breaks_is_tried_again_and_leaves_nothing() {
    let world = world();
    let answer = from_layout(&world);
    let blobs = AtomicUsize::new(0);
    let server = Server::start(move |path, _, _| {
        let mut answer = answer(path);
        // The second blob is the layer; its first transfer breaks.
        answer.3 = path.contains("/blobs/") && blobs.fetch_add(1, Ordering::SeqCst) == 1;
        answer
    });
    let word = format!("127.0.0.1:{}/a/b:1", server.port);
    assert_eq!(pull(&world, &word, RegistryOptions::default()).unwrap(), "from afar");
    let left = fs::read_dir(world.path("cache/oci")).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["sha256"]);
}

#[test]
fn redirects_to_plain_http_elsewhere_are_refused() {
    let world = world();
    let server = Server::start(|path, _, _| match path {
        "/v2/" => (200, String::new(), Vec::new(), false),
        _ => (307, "Location: http://registry.invalid/x\r\n".into(), Vec::new(), false),
    });
    let error = pull(&world, &format!("127.0.0.1:{}/a:1", server.port), RegistryOptions::default());
    assert!(error.unwrap_err().to_string().contains("plain HTTP is for the loopback only"));
}
