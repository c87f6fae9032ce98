//! Certificates of registries that are not in the host's own list: `certs.d`, as docker, podman and skopeo read it
//! (containers-certs.d(5)). Below a directory of that name `HOST[:PORT]/` has `*.crt` (authorities) and pairs of
//! `NAME.cert` and `NAME.key` (who one is oneself). What is there counts beside the host's list, for that host only.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, parse_pem};

/// Largest file of certificates, in bytes.
const MAX: u64 = 1 << 20;
/// Most of them that are read of one host.
const MOST: usize = 256;

/// Where they are looked for, in this order; the first directory that has the host is taken.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    pub dirs: Vec<PathBuf>,
}

/// What a host has.
#[derive(Default)]
pub(super) struct Found {
    authorities: Vec<Certificate<'static>>,
    pub(super) client: Option<ClientCert>,
}

impl Certificates {
    /// `$XDG_CONFIG_HOME/containers/certs.d` (`~/.config`), and those of the host for all its users.
    pub fn from_env(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let var = |name| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let config = var("XDG_CONFIG_HOME").or_else(|| Some(var("HOME")?.join(".config")));
        let own = config.map(|dir| dir.join("containers/certs.d"));
        let all = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        Self { dirs: own.into_iter().chain(all).collect() }
    }

    /// What there is for `host[:port]`; nothing where no directory is named so.
    ///
    /// # Errors
    /// In words: files that cannot be read or are no such thing.
    pub(super) fn of(&self, host: &str) -> Result<Option<Found>, String> {
        // It comes from an address, and becomes a name in a directory.
        if host.is_empty() || host.starts_with('.') || host.contains('/') {
            return Ok(None);
        }
        let dir = self.dirs.iter().map(|dir| dir.join(host)).find(|dir| dir.is_dir());
        dir.map(|dir| read(&dir).map_err(|e| format!("the certificates in {}: {e}", dir.display())))
            .transpose()
    }
}

impl Found {
    /// The host's list and these.
    pub(super) fn roots(&self) -> RootCerts {
        if self.authorities.is_empty() {
            return RootCerts::PlatformVerifier;
        }
        let system = rustls_native_certs::load_native_certs().certs;
        let system = system.iter().map(|der| Certificate::from_der(der).to_owned());
        RootCerts::Specific(Arc::new(system.chain(self.authorities.iter().cloned()).collect()))
    }
}

fn read(dir: &Path) -> Result<Found, String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(|e| e.to_string())?
        .take(MOST)
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    let mut found = Found::default();
    for path in &paths {
        match path.extension().and_then(|word| word.to_str()) {
            Some("crt") => found.authorities.extend(certificates(path)?),
            Some("cert") if found.client.is_none() => found.client = Some(client(path)?),
            _ => {}
        }
    }
    Ok(found)
}

fn client(path: &Path) -> Result<ClientCert, String> {
    let key = path.with_extension("key");
    let keys = items(&key)?.into_iter().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    });
    let key: PrivateKey<'static> = keys.ok_or_else(|| format!("{} holds no private key", key.display()))?;
    Ok(ClientCert::new_with_certs(&certificates(path)?, key))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let found: Vec<_> = items(path)?
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .take(MOST)
        .collect();
    match found.is_empty() {
        true => Err(format!("{} holds no certificate (PEM is read)", path.display())),
        false => Ok(found),
    }
}

fn items(path: &Path) -> Result<Vec<PemItem<'static>>, String> {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = fs::File::open(path).map_err(|e| told(&e))?;
    let mut pem = Vec::new();
    file.take(MAX).read_to_end(&mut pem).map_err(|e| told(&e))?;
    parse_pem(&pem).collect::<Result<_, _>>().map_err(|e| told(&e))
}
