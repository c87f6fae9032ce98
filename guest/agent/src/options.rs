//! The two ways to start: as PID 1 of a machine, or natively for tests (`--listen unix:PATH`).

use crate::agent::Agent;
use crate::boot;
use crate::cgroup::Cgroup;
use crate::world::{World, say};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// The name and version of the first line.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the agent; returns only when it could not start.
pub fn main(arguments: &[OsString]) -> i32 {
    let started = if rustix::process::getpid().is_init() && arguments.is_empty() {
        boot::boot()
    } else {
        native(arguments)
    };
    match started {
        Ok(mut agent) => {
            say(&format!("smolvm-agent {VERSION} ready\n"));
            agent.run()
        }
        Err(error) => {
            say(&format!("smolvm-agent: {error}\n"));
            1
        }
    }
}

/// Starts without the duties of PID 1: `--listen unix:PATH [--root DIR] [--run DIR] [--cgroup DIR]`.
fn native(arguments: &[OsString]) -> io::Result<Agent> {
    let usage = || {
        let text = "outside a machine: agent --listen unix:PATH [--root DIR] [--run DIR] [--cgroup DIR] [--upper DIR]";
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let mut listen = None;
    let (mut root, mut run) = (PathBuf::from("/"), PathBuf::from("/run/smolvm"));
    let (mut cgroup, mut upper) = (None, None);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(usage()) };
        let path = PathBuf::from(value);
        match name.to_str() {
            Some("--listen") => {
                listen = value.to_str().and_then(|text| text.strip_prefix("unix:")).map(PathBuf::from)
            }
            Some("--root") => root = path,
            Some("--run") => run = path,
            Some("--cgroup") => cgroup = Some(path),
            Some("--upper") => upper = Some(path),
            _ => return Err(usage()),
        }
    }
    let listener = listen_unix(&listen.ok_or_else(usage)?)?;
    let cgroup = cgroup.map(|path| Cgroup::open(&path)).transpose()?;
    let upper = upper.map(|path| crate::world::open_directory(&path)).transpose()?;
    let (root, null) = (crate::world::open_directory(&root)?, crate::world::open_null()?);
    let world = World { pid1: false, root, null, run, cgroup, upper, writable: None };
    Agent::new(listener, world)
}

fn listen_unix(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}
