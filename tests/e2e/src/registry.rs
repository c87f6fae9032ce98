//! Debian's docker-registry on loopback, with certificates and a token server of the test's own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use crate::text;

/// Who may log in, and with what.
pub const USER: (&str, &str) = ("ann", "secret");
/// `htpasswd -B`'s line for [`USER`].
pub const HTPASSWD: &str = "ann:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

/// A running docker-registry; it ends with this.
pub struct DockerRegistry {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub host: String,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl DockerRegistry {
    /// Starts one with its blobs and configuration in `dir`. `http` and `auth`: lines of its configuration's tables of
    /// that name, as YAML in braces.
    pub fn serve(dir: &Path, http: &str, auth: &str) -> Self {
        let port = free_port();
        let host = format!("127.0.0.1:{port}");
        let blobs = dir.join("blobs");
        let auth = if auth.is_empty() { String::new() } else { format!("auth: {{{auth}}}\n") };
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{host}', {http}}}\n{auth}\
             log: {{level: error}}\n",
            blobs.display()
        );
        fs::create_dir_all(dir).unwrap();
        let path = dir.join(format!("{port}.yml"));
        fs::write(&path, config).unwrap();
        let mut registry = Command::new("docker-registry");
        registry.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut this = Self { child: registry.spawn().unwrap(), host };
        let begun = Instant::now();
        while TcpStream::connect(&this.host).is_err() {
            assert!(this.child.try_wait().unwrap().is_none(), "docker-registry ended: {}", path.display());
            assert!(begun.elapsed().as_secs() < 60, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        this
    }

    /// Copies an image of a layout into it with skopeo, as whoever `more` (its words) says.
    pub fn push(&self, layout: &Path, name: &str, more: &[&str]) {
        let to = format!("docker://{}/{name}", self.host);
        let from = format!("oci:{}:1", layout.display());
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--all"]).args(more).args([&from, &to]).stdin(Stdio::null());
        let output = skopeo.output().expect("skopeo");
        assert!(output.status.success(), "pushing {name}: {}", text(&output.stderr));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn openssl(dir: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut openssl = Command::new("openssl");
    openssl.args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {}", text(&output.stderr));
    output.stdout
}

/// Makes an authority (`ca.crt`), a certificate of it for the loopback (`server.crt`, `server.key`) and one for a user
/// (`client.cert`, `client.key`) in `dir`.
pub fn certificates(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["-x509", "-days", "30", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(dir, &[&["req"], &ec[..], &authority[..]].concat(), b"");
    for (name, ext, key, cert) in [
        ("127.0.0.1", "subjectAltName=IP:127.0.0.1,DNS:localhost\n", "server.key", "server.crt"),
        ("user", "extendedKeyUsage=clientAuth\n", "client.key", "client.cert"),
    ] {
        fs::write(dir.join("ext"), ext).unwrap();
        let subject = format!("/CN={name}");
        openssl(dir, &[&["req"], &ec[..], &["-subj", &subject, "-keyout", key, "-out", "csr"]].concat(), b"");
        let sign = ["x509", "-req", "-in", "csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        openssl(dir, &[&sign[..], &["-days", "30", "-extfile", "ext", "-out", cert]].concat(), b"");
    }
}

/// A token server (Distribution specification, "Token Authentication"): tokens for [`USER`], and for nobody else.
/// Returns the registry's `auth` lines.
pub fn token_server(dir: &Path) -> String {
    fs::create_dir_all(dir).unwrap();
    let req = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=tokens"];
    openssl(dir, &[&req[..], &["-keyout", "token.key", "-out", "token.crt"]].concat(), b"");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().unwrap().port();
    let keys = dir.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = token(stream, &keys);
        }
    });
    let bundle = dir.join("token.crt");
    format!(
        "token: {{realm: 'http://127.0.0.1:{port}/token', service: reg, issuer: tests, rootcertbundle: {}}}",
        bundle.display()
    )
}

fn token(stream: TcpStream, keys: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut who = String::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            who = value.to_owned();
        }
    }
    let fine = who == format!("Basic {}", STANDARD.encode(format!("{}:{}", USER.0, USER.1)));
    let (status, body) = match fine {
        true => ("200 OK", json!({ "token": signed(&request, keys) }).to_string()),
        false => ("401 Unauthorized", "{}".to_owned()),
    };
    let mut out = &stream;
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A token for what the request's `scope` names, pulling only unless pushing is asked for, too.
fn signed(request: &str, keys: &Path) -> String {
    let query = request.split(' ').nth(1).unwrap_or_default().split_once('?').map_or("", |(_, query)| query);
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
    let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    let mut parts = scope.splitn(3, ':').skip(1);
    let (name, actions) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let actions: Vec<&str> = actions.split(',').collect();
    let certificate = fs::read_to_string(keys.join("token.crt")).unwrap();
    let der: String = certificate.lines().filter(|line| !line.starts_with("-----")).collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let encoded = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = encoded(json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] }));
    let body = encoded(json!({
        "iss": "tests", "sub": USER.0, "aud": "reg", "iat": now, "nbf": now - 60, "exp": now + 600, "jti": "1",
        "access": [{ "type": "repository", "name": name, "actions": actions }],
    }));
    let text = format!("{head}.{body}");
    let signature = openssl(keys, &["dgst", "-sha256", "-sign", "token.key"], text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
