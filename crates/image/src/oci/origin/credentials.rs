//! User names and passwords for registries, from where docker and its relatives keep them.
//!
//! Files: `config.json` of docker and `auth.json` of podman and skopeo, the same form. A
//! program `docker-credential-NAME` is run only where the user's own file names it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::super::{Problem, failed};
use super::http::base64_decode;

/// Largest file and largest answer of a helper, in bytes.
const MAX: u64 = 1 << 20;

/// How docker names its own registry in these files.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// Who to be at a registry.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Password {
        user: String,
        secret: String,
    },
    /// A refresh token instead of a password.
    Token(String),
}

/// Where credentials are looked for, in this order.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    pub files: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Credentials {
    /// The usual files: `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json`, `$XDG_RUNTIME_DIR/containers/auth.json`.
    pub fn from_env(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let var = |name| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let docker = var("DOCKER_CONFIG").or_else(|| Some(var("HOME")?.join(".docker")));
        let files = [
            var("REGISTRY_AUTH_FILE"),
            docker.map(|dir| dir.join("config.json")),
            var("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        ];
        Self { files: files.into_iter().flatten().collect() }
    }

    /// Who to be at `registry` (`host[:port]`); None for nobody in particular.
    pub(super) fn login(&self, registry: &str) -> Result<Option<Login>, Problem> {
        for path in &self.files {
            let Ok(file) = std::fs::File::open(path) else { continue };
            let mut text = Vec::new();
            file.take(MAX).read_to_end(&mut text).map_err(failed("reading", path))?;
            let file: File = serde_json::from_slice(&text).map_err(|e| Problem::Credentials {
                registry: registry.to_owned(),
                what: format!("{} is not what docker writes: {e}", path.display()),
            })?;
            if let Some(login) = file.login(registry)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }
}

impl File {
    fn login(&self, registry: &str) -> Result<Option<Login>, Problem> {
        let docker = matches!(registry, "docker.io" | "registry-1.docker.io" | "index.docker.io");
        let means = |key: &str| {
            let host = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
            let host = host.split('/').next().unwrap_or_default();
            host == registry || (docker && matches!(host, "index.docker.io" | "docker.io"))
        };
        let server = if docker { DOCKER_KEY } else { registry };
        if let Some((_, helper)) = self.cred_helpers.iter().find(|(key, _)| means(key)) {
            return helped(helper, server, registry);
        }
        if let Some(login) = self.auths.iter().find(|(key, _)| means(key)).and_then(|(_, auth)| auth.login())
        {
            return Ok(Some(login));
        }
        match &self.creds_store {
            Some(helper) if !helper.is_empty() => helped(helper, server, registry),
            _ => Ok(None),
        }
    }
}

impl Auth {
    fn login(&self) -> Option<Login> {
        if let Some(token) = self.identitytoken.clone().filter(|t| !t.is_empty()) {
            return Some(Login::Token(token));
        }
        if let Some(auth) = &self.auth {
            let text = String::from_utf8(base64_decode(auth)?).ok()?;
            let (user, secret) = text.split_once(':')?;
            let secret = secret.trim_end_matches('\0').to_owned();
            return Some(Login::Password { user: user.to_owned(), secret });
        }
        let (user, secret) = (self.username.clone()?, self.password.clone()?);
        Some(Login::Password { user, secret })
    }
}

/// Asks `docker-credential-HELPER get` (docker/docker-credential-helpers, "Development").
fn helped(helper: &str, server: &str, registry: &str) -> Result<Option<Login>, Problem> {
    let problem = |what: String| Problem::Credentials { registry: registry.to_owned(), what };
    if helper.is_empty()
        || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        return Err(problem("the helper's name in docker's config.json is no name of a program".into()));
    }
    let program = format!("docker-credential-{helper}");
    let cannot = |e: std::io::Error| {
        problem(format!("running {program} failed: {e}; install it, or take it out of docker's config.json"))
    };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(cannot)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input answers without it, or fails.
        let _ = stdin.write_all(server.as_bytes());
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX).read_to_end(&mut answer).map_err(cannot)?;
    }
    if !child.wait().map_err(cannot)?.success() {
        return Ok(None); // it knows nobody there
    }
    let helped: Helped =
        serde_json::from_slice(&answer).map_err(|e| problem(format!("{program} answered nonsense: {e}")))?;
    Ok(Some(match helped.username.as_str() {
        "<token>" => Login::Token(helped.secret),
        _ => Login::Password { user: helped.username, secret: helped.secret },
    }))
}
