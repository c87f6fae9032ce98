//! One HTTP request, with what a registry needs and no more: plain HTTP to the loopback only,
//! redirects followed by hand so that neither that rule nor a password is lost on the way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ureq::http::{Response, Uri, header};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::certificates::{Certificates, Found};

/// Redirects followed; a download has one.
const HOPS: usize = 5;

/// What a request says beside its address.
#[derive(Clone, Default)]
pub(super) struct Words {
    pub(super) accept: Option<&'static str>,
    /// Sent to the first host only.
    pub(super) authorization: Option<String>,
    /// A form to post; a GET without.
    pub(super) form: Option<String>,
}

/// Connections, kept open between requests.
pub(super) struct Http {
    certificates: Certificates,
    /// Through the proxy that the environment names, if any.
    out: Agent,
    /// To the loopback, never through a proxy.
    local: Agent,
    /// To hosts that have certificates of their own, by `host[:port]`; nothing for those that have none.
    own: Mutex<HashMap<String, Option<Agent>>>,
}

/// `local`: for the loopback.
fn agent(found: &Found, local: bool) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(found.roots())
        .client_cert(found.client.clone())
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()));
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("smolvm/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        // Of a body each piece, not the whole: layers are large and lines slow.
        .timeout_per_read(Some(Duration::from_secs(60)));
    let config = if local { config.proxy(None) } else { config.https_only(true) };
    config.build().into()
}

impl Http {
    pub(super) fn new(certificates: Certificates) -> Self {
        let plain = Found::default();
        let (out, local) = (agent(&plain, false), agent(&plain, true));
        Self { certificates, out, local, own: Mutex::default() }
    }

    /// Who speaks to this address.
    fn agent(&self, at: &Uri) -> Result<Agent, String> {
        let local = allowed(at)?;
        let host = at.authority().map_or("", |authority| authority.as_str());
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if !own.contains_key(host) {
            let found = self.certificates.of(host)?.map(|found| agent(&found, local));
            own.insert(host.to_owned(), found);
        }
        let general = if local { &self.local } else { &self.out };
        Ok(own.get(host).cloned().flatten().unwrap_or_else(|| general.clone()))
    }

    /// Sends a request and follows redirects.
    ///
    /// # Errors
    /// In words: no connection, an address that is not allowed, too many redirects. A status is
    /// no error.
    pub(super) fn send(&self, url: &str, words: &Words) -> Result<Response<Body>, String> {
        let first = parse(url)?;
        let mut at = first.clone();
        for _ in 0..=HOPS {
            let agent = self.agent(&at)?;
            let authorization = words.authorization.as_ref().filter(|_| at.authority() == first.authority());
            let response = match &words.form {
                Some(form) => {
                    let request =
                        agent.post(&at).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                    request.send(form)
                }
                None => {
                    let mut request = agent.get(&at);
                    if let Some(accept) = words.accept {
                        request = request.header(header::ACCEPT, accept);
                    }
                    if let Some(value) = authorization {
                        request = request.header(header::AUTHORIZATION, value);
                    }
                    request.call()
                }
            };
            let response = response.map_err(|e| told(&at, &e))?;
            let to = response.headers().get(header::LOCATION).filter(|_| response.status().is_redirection());
            let Some(to) = to.and_then(|to| to.to_str().ok()) else {
                return Ok(response);
            };
            at = joined(&at, to)?;
        }
        Err(format!("it redirects more than {HOPS} times"))
    }
}

fn parse(url: &str) -> Result<Uri, String> {
    url.parse().map_err(|e| format!("`{}` is no address: {e}", super::super::document::shown(url)))
}

/// Where `to` leads from `at`.
fn joined(at: &Uri, to: &str) -> Result<Uri, String> {
    if to.contains("://") {
        return parse(to);
    }
    let scheme = at.scheme_str().unwrap_or("https");
    if let Some(rest) = to.strip_prefix("//") {
        return parse(&format!("{scheme}://{rest}"));
    }
    let authority = at.authority().map_or("", |a| a.as_str());
    match to.starts_with('/') {
        true => parse(&format!("{scheme}://{authority}{to}")),
        false => {
            let dir = at.path().rsplit_once('/').map_or("", |(dir, _)| dir);
            parse(&format!("{scheme}://{authority}{dir}/{to}"))
        }
    }
}

/// Whether it is the loopback; an error where the address may not be asked at all.
fn allowed(uri: &Uri) -> Result<bool, String> {
    let host = uri.host().unwrap_or_default();
    let local = is_loopback(host);
    match uri.scheme_str() {
        Some("https") => Ok(local),
        Some("http") if local => Ok(true),
        Some("http") => Err(format!(
            "plain HTTP is for the loopback only, and {host} is none; give the registry a certificate"
        )),
        _ => Err("its address is neither https nor http".to_owned()),
    }
}

/// Whether a host is this one: `localhost`, 127.0.0.0/8, `[::1]`.
pub(super) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn told(at: &Uri, error: &ureq::Error) -> String {
    let host = at.authority().map_or("?", |a| a.as_str());
    let advice = match error {
        _ if matches!(tls(error), Some(rustls::Error::AlertReceived(_))) => format!(
            "; does it want to know who asks? A NAME.cert and NAME.key in ~/.config/containers/certs.d/{host}/ say so"
        ),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => unknown_to_us(host),
        _ if tls(error).is_some() => unknown_to_us(host),
        ureq::Error::HostNotFound => "; is the name right, and this host online?".to_owned(),
        _ => String::new(),
    };
    format!("asking {host} failed: {error}{advice}")
}

/// What was wrong with the handshake, which comes as a failure of the connection.
fn tls(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn unknown_to_us(host: &str) -> String {
    format!(
        "; is its certificate known to this host (package ca-certificates)? One of your own authority goes to \
         ~/.config/containers/certs.d/{host}/ca.crt"
    )
}

/// `Authorization: Basic`.
pub(super) fn basic(user: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{secret}")))
}

pub(super) fn base64_decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text.trim()).ok()
}

/// `key=value` pairs of a query or form.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    let encoded = |text: &str| {
        text.bytes().fold(String::new(), |mut out, b| {
            match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(b))
                }
                b => out.push_str(&format!("%{b:02X}")),
            }
            out
        })
    };
    pairs.iter().map(|(k, v)| format!("{}={}", encoded(k), encoded(v))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_the_loopback() {
        for fine in
            ["http://127.0.0.1:5000/v2/", "http://localhost/v2/", "http://[::1]:1/", "https://a.example/"]
        {
            assert!(allowed(&parse(fine).unwrap()).is_ok(), "{fine}");
        }
        for bad in ["http://a.example/", "http://127.0.0.1.example/", "http://10.0.0.1/", "ftp://localhost/"]
        {
            assert!(allowed(&parse(bad).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects_lead_where_browsers_go() {
        let at = parse("https://a.example/v2/x?q=1").unwrap();
        for (to, url) in [
            ("/y", "https://a.example/y"),
            ("z?a=b", "https://a.example/v2/z?a=b"),
            ("//b.example/y", "https://b.example/y"),
            ("http://b.example/", "http://b.example/"),
        ] {
            assert_eq!(joined(&at, to).unwrap().to_string(), url);
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            form(&[("scope", "repository:a/b:pull"), ("x", "&")]),
            "scope=repository%3Aa%2Fb%3Apull&x=%26"
        );
    }
}
