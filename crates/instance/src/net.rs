//! What a machine's network is made of: its definition's wishes and its user's words.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use netstack::{Config, Directory, Policy, Published};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use spec::NetSpec;

use crate::error::Error;
use crate::forward::Publish;

/// What the user said. A definition narrows what may be reached; only these words open the host itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetOptions {
    /// On or off; as the definition says when absent.
    pub switch: Option<bool>,
    pub allow_hosts: Vec<String>,
    pub allow_cidrs: Vec<String>,
    /// Resolvers instead of the host's.
    pub dns: Vec<SocketAddr>,
    /// Published UDP ports.
    pub udp: Vec<Publish>,
}

impl NetOptions {
    /// The network, if there is to be one, with or without neighbours; takes the published ports.
    ///
    /// # Errors
    /// Words that are no name or range, a taken port.
    pub(crate) fn config(
        &self,
        spec: Option<&NetSpec>,
        peers: Option<Arc<dyn Directory>>,
    ) -> Result<Option<Config>, Error> {
        if !self.switch.unwrap_or(spec.is_some()) {
            // Its neighbours and nothing else.
            return Ok(peers.map(|peers| Config {
                policy: Policy::nothing(),
                peers: Some(peers),
                ..Config::default()
            }));
        }
        let spec = spec.cloned().unwrap_or_default();
        raise_descriptors();
        let hosts = parsed(spec.allow_hosts.iter().chain(&self.allow_hosts))?;
        let policy = Policy::new(hosts, parsed(&spec.allow_cidrs)?, parsed(&self.allow_cidrs)?);
        let published = self.udp.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Some(Config { policy, resolvers: self.dns.clone(), published, peers }))
    }
}

/// A flow is a descriptor, and a soft limit of 1024 is common. Where it cannot be raised, flows beyond it are refused.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn parsed<'a, T>(words: impl IntoIterator<Item = &'a String>) -> Result<Vec<T>, Error>
where
    T: std::str::FromStr<Err = String>,
{
    words.into_iter().map(|word| word.parse().map_err(Error::Refused)).collect()
}

fn bind(publish: &Publish) -> Result<Published, Error> {
    let taken = |source| Error::PortTaken { address: publish.host.to_string(), source };
    Ok(Published { socket: UdpSocket::bind(publish.host).map_err(taken)?, guest: publish.guest })
}
