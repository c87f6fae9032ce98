//! A registry (OCI Distribution specification 1.1, "Pulling manifests", "Pulling blobs"), with
//! its mirrors before it.
//!
//! A mirror that fails is passed over: digests say whether what came is right, and the error
//! that is told is the registry's own.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use oci_spec::image::Descriptor;
use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::super::checked::sha256_hex;
use super::super::document::{ACCEPT, shown};
use super::super::{MAX_DOCUMENT, Problem, Reference};
pub use super::certificates::Certificates;
pub use super::credentials::Credentials;
use super::http::{Http, Words, is_loopback};
use super::{Origin, auth, read_document};

/// Where docker.io answers.
const DOCKER_HOST: &str = "registry-1.docker.io";
/// Tries of a request that a busy registry refuses or a bad line loses.
const TRIES: u32 = 3;

/// How registries are asked.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    pub credentials: Credentials,
    /// Of registries whose authority the host does not know.
    pub certificates: Certificates,
    /// Mirrors by registry (`docker.io`), asked in order before it: `[http[s]://]host[:port][/prefix]`.
    pub mirrors: BTreeMap<String, Vec<String>>,
}

/// One repository of a registry.
pub(in super::super) struct Registry {
    http: Http,
    credentials: Credentials,
    endpoints: Vec<Endpoint>,
    /// Tag or digest.
    reference: String,
}

/// A host that may have the repository.
struct Endpoint {
    /// `host[:port]`, as people and docker's config.json name it.
    host: String,
    /// With scheme, once it is known.
    base: OnceLock<String>,
    repository: String,
    authorization: Mutex<Option<String>>,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Endpoint {
    fn new(address: &str, repository: &str) -> Self {
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, address),
        };
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let repository = match prefix {
            "" => repository.to_owned(),
            prefix => format!("{prefix}/{repository}"),
        };
        let base = OnceLock::new();
        if let Some(scheme) = scheme {
            let _ = base.set(format!("{scheme}://{host}")); // it is new
        }
        Self { host: host.to_owned(), base, repository, authorization: Mutex::new(None) }
    }

    /// `https://host`; on the loopback plain HTTP, unless nothing answers to it.
    fn base(&self, http: &Http) -> &str {
        self.base.get_or_init(|| {
            let name =
                self.host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            if is_loopback(name.map_or(&self.host, |(name, _)| name)) {
                let plain = format!("http://{}", self.host);
                let answer = http.send(&format!("{plain}/v2/"), &Words::default());
                // A TLS server answers 400 to plain HTTP.
                if answer.is_ok_and(|answer| answer.status() != StatusCode::BAD_REQUEST) {
                    return plain;
                }
            }
            format!("https://{}", self.host)
        })
    }

    fn problem(&self, what: impl Into<String>) -> Problem {
        Problem::Registry { registry: self.host.clone(), what: what.into() }
    }
}

impl Registry {
    pub(in super::super) fn new(reference: &Reference, options: &RegistryOptions) -> Self {
        let registry = reference.registry();
        let host = if registry == "docker.io" { DOCKER_HOST } else { registry };
        let mirrors = options.mirrors.get(registry).into_iter().flatten().map(String::as_str);
        let repository = reference.repository();
        Self {
            http: Http::new(options.certificates.clone()),
            credentials: options.credentials.clone(),
            endpoints: mirrors.chain([host]).map(|address| Endpoint::new(address, repository)).collect(),
            reference: reference.manifest().to_owned(),
        }
    }

    /// The first answer that is one; else what the registry itself said.
    fn first<T>(&self, ask: impl Fn(&Endpoint) -> Result<T, Problem>) -> Result<T, Problem> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match ask(endpoint) {
                Ok(answer) => return Ok(answer),
                Err(problem) => last = Some(problem),
            }
        }
        Err(last.unwrap_or_else(|| Problem::NotSupported("no registry to ask".into())))
    }

    /// GET of a path below the repository, with credentials where they are asked for.
    fn get(
        &self,
        at: &Endpoint,
        path: &str,
        accept: Option<&'static str>,
    ) -> Result<Response<Body>, Problem> {
        let url = format!("{}/v2/{}/{path}", at.base(&self.http), at.repository);
        let mut answered = false;
        let mut tries = 0;
        loop {
            let authorization = at.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let words = Words { accept, authorization, form: None };
            tries += 1;
            let response = match self.http.send(&url, &words) {
                Ok(response) => response,
                Err(_) if tries < TRIES => {
                    pause(tries);
                    continue;
                }
                Err(what) => return Err(at.problem(what)),
            };
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::UNAUTHORIZED if !answered => {
                    answered = true;
                    self.log_in(at, &response)?;
                }
                status if busy(status) && tries < TRIES => pause(tries),
                _ => return Err(at.problem(refusal(at, response, path))),
            }
        }
    }

    fn log_in(&self, at: &Endpoint, refused: &Response<Body>) -> Result<(), Problem> {
        let challenge = auth::asked(refused.headers())
            .ok_or_else(|| at.problem("it refuses access and does not say what it wants"))?;
        // docker.io's credentials are kept under docker's own name for it.
        let login = self.credentials.login(&at.host)?;
        let value = auth::answer(&self.http, &challenge, login.as_ref(), &at.repository);
        let value = value.map_err(|what| at.problem(what))?;
        *at.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn manifest(&self, reference: &str) -> Result<Vec<u8>, Problem> {
        self.first(|endpoint| {
            let response = self.get(endpoint, &format!("manifests/{reference}"), Some(ACCEPT))?;
            read_document(
                "manifest",
                response.into_body().into_with_config().limit(MAX_DOCUMENT + 1).reader(),
            )
        })
    }
}

impl Origin for Registry {
    fn find(&self, digest: Option<&str>) -> Result<Vec<u8>, Problem> {
        let bytes = self.manifest(digest.unwrap_or(&self.reference))?;
        if digest.is_none() && self.reference.contains(':') {
            super::super::checked::verify("the manifest", &bytes, &self.reference)?;
        }
        Ok(bytes)
    }

    fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, Problem> {
        sha256_hex(wanted.digest())?;
        self.manifest(wanted.digest().as_ref())
    }

    fn blob(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Problem> {
        sha256_hex(wanted.digest())?;
        self.first(|endpoint| {
            let response = self.get(endpoint, &format!("blobs/{}", wanted.digest()), None)?;
            let body = response.into_body().into_with_config().limit(u64::MAX).reader();
            Ok(Box::new(body) as Box<dyn Read + Send>)
        })
    }

    fn is_local(&self) -> bool {
        false
    }
}

fn busy(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

/// Gives a busy registry time.
fn pause(tries: u32) {
    std::thread::sleep(Duration::from_millis(300 * u64::from(3u32.pow(tries.min(4)))));
}

/// What a refusal means, and what to do.
fn refusal(at: &Endpoint, response: Response<Body>, path: &str) -> String {
    let status = response.status();
    let body = response.into_body().into_with_config().limit(64 << 10).read_to_vec().unwrap_or_default();
    let said = serde_json::from_slice::<Errors>(&body).ok().and_then(|e| e.errors.into_iter().next());
    let said = said.map(|s| format!(" ({}: {})", shown(&s.code), shown(&s.message))).unwrap_or_default();
    let advice = match status {
        StatusCode::NOT_FOUND => {
            format!("it has no {} in `{}`; check the name and the tag", shown(path), at.repository)
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "access to `{}` is refused; the name may be wrong, else `docker login {}` (or `skopeo login`)",
            at.repository, at.host
        ),
        StatusCode::TOO_MANY_REQUESTS => {
            "it allows no more requests now; log in, name a mirror in config.toml, or wait".to_owned()
        }
        status => format!("it answered {status} to {}", shown(path)),
    };
    format!("{advice}{said}")
}
