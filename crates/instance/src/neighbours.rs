//! Machines that reach each other by name, without a daemon.
//!
//! Who is on which network is written in the instances' records. A machine on one listens on a Unix socket beside its
//! control socket; another's network finds it by name when its guest asks, and connects there. Next: `netstack::Directory`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use netstack::{Directory, PEER_CONNECTED};
use store::Dirs;

use crate::error::{Error, io_error};
use crate::forward::{CONNECTIONS, Connect, join, reach, spawn};
use crate::record::{Instance, Phase};

/// How long who connects may take to say the port.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machines on the same networks as this one.
#[derive(Debug)]
pub struct Neighbours {
    dirs: Dirs,
    own: String,
    networks: Vec<String>,
}

impl Neighbours {
    /// Those of the machine called `own`.
    pub fn new(dirs: Dirs, own: &str, networks: &[String]) -> Self {
        Self { dirs, own: own.to_owned(), networks: networks.to_vec() }
    }
}

impl Directory for Neighbours {
    fn find(&self, name: &str) -> Option<PathBuf> {
        if name == self.own || !spec::valid_name(name) || !self.dirs.instances().join(name).is_dir() {
            return None;
        }
        let other = Instance::open(&self.dirs, name).ok()?;
        let shared = other.record().ok()?.networks.iter().any(|network| self.networks.contains(network));
        (shared && other.phase() == Phase::Running).then(|| other.network_socket())
    }
}

/// A machine's door for its neighbours; closed on drop.
pub struct Door(PathBuf);

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Opens an instance's door: what knocks is led to the guest's loopback. The caller holds the instance's lock, so a
/// socket file that is there is a dead VMM's.
///
/// # Errors
/// The host's.
pub fn open_door(instance: &Instance, connect: Connect) -> Result<Door, Error> {
    let path = instance.network_socket();
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(io_error("listen on", &path))?;
    let live = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming().flatten() {
            if live.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
                live.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (connect, count) = (connect.clone(), live.clone());
            let led = spawn(move || {
                // Who knocks sees the end of the stream when this fails.
                let _ = lead(stream, &connect);
                count.fetch_sub(1, Ordering::AcqRel);
            });
            if led.is_err() {
                live.fetch_sub(1, Ordering::AcqRel);
            }
        }
    };
    spawn(accept).map_err(io_error("serve", &path))?;
    Ok(Door(path))
}

fn lead(mut stream: UnixStream, connect: &Connect) -> Result<(), Error> {
    let io = |e| Error::Agent(agent_protocol::ClientError::Io(e));
    let mut port = [0; 2];
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.read_exact(&mut port).map_err(io)?;
    stream.set_read_timeout(None).map_err(io)?;
    let guest = reach(u16::from_le_bytes(port), connect)?;
    stream.write_all(&[PEER_CONNECTED]).map_err(io)?;
    join(stream, guest);
    Ok(())
}
