//! What a container image says about how it wants to run, and what that means for a machine.

use serde::{Deserialize, Serialize};

use crate::machine::{MachineSpec, Service};

/// The part of an image's configuration that smolvm honours (OCI image specification, "Image
/// Configuration": Entrypoint, Cmd, Env, User, WorkingDir, StopSignal, ExposedPorts).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDefaults {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<(String, String)>,
    /// `name`, `uid`, `name:group` or `uid:gid`.
    pub user: Option<String>,
    pub workdir: Option<String>,
    /// 1 to 64.
    pub stop_signal: Option<u8>,
    /// `80/tcp`, sorted.
    pub ports: Vec<String>,
}

impl ImageDefaults {
    /// What runs for these words, as docker reads them: the image's entrypoint with the words, or
    /// with the image's own where there are none. Empty when there is nothing at all.
    pub fn argv(&self, words: &[String]) -> Vec<String> {
        let rest = if words.is_empty() { &self.cmd } else { words };
        self.entrypoint.iter().chain(rest).cloned().collect()
    }

    /// The TCP ports that the image says it listens on.
    pub fn tcp_ports(&self) -> Vec<u16> {
        let tcp = |port: &String| match port.split_once('/') {
            None => port.parse().ok(),
            Some((number, "tcp")) => number.parse().ok(),
            Some(_) => None,
        };
        self.ports.iter().filter_map(tcp).collect()
    }
}

impl MachineSpec {
    /// Puts an image's wishes under the definition's: what the definition says wins, variables
    /// of the environment one by one.
    pub fn over_image(mut self, image: ImageDefaults) -> Self {
        let argv = image.argv(&[]);
        let own = self.service.take();
        self.service = match own {
            Some(own) => Some(Service {
                argv: own.argv,
                env: image.env.iter().cloned().chain(own.env).collect(),
                user: own.user.or_else(|| image.user.clone()),
                workdir: own.workdir.or_else(|| image.workdir.clone()),
                stop_signal: own.stop_signal.or(image.stop_signal),
                ports: own.ports,
            }),
            None if argv.is_empty() => None,
            None => Some(Service {
                argv,
                env: image.env.clone(),
                user: image.user.clone(),
                workdir: image.workdir.clone(),
                stop_signal: image.stop_signal,
                ports: Vec::new(),
            }),
        };
        self.env = image.env.clone();
        self.image = Some(image);
        self
    }
}

/// Linux x86-64's number of a signal: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`; None for other words.
pub fn signal_number(word: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = word.parse::<u8>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let word = word.to_ascii_uppercase();
    let name = word.strip_prefix("SIG").unwrap_or(&word);
    if let Some(at) = NAMES.iter().position(|known| *known == name) {
        return Some(at as u8 + 1);
    }
    // signal(7): what glibc leaves to programs begins at 34.
    let (base, offset) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(more), _) => (34, more.strip_prefix('+').unwrap_or(if more.is_empty() { "0" } else { more })),
        (_, Some("")) => (64, "0"),
        (_, Some(less)) => (64, less),
        _ => return None,
    };
    let number = base + offset.parse::<i32>().ok()?;
    u8::try_from(number).ok().filter(|n| (34..=64).contains(n))
}
