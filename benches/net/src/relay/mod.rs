//! The relays that are compared, each a process behind a Unix socket that speaks the same protocol.
//!
//! `ours.rs` is netstack alone; libslirp runs in a QEMU without a machine, whose hub joins `-netdev user` and
//! `-netdev stream`; passt is itself. All map the guest's gateway to the host's loopback.

pub mod ours;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use engine::host::{read, run, which};

use crate::frames::{GATEWAY, GUEST};

/// How long a relay may take to listen.
const LIMIT: Duration = Duration::from_secs(20);

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As our device runs it: no checksums between memory and memory.
    Ours,
    /// With checksums, for a guest that cannot do without. The other two always compute them.
    OursWithChecksums,
    Libslirp,
    Passt,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Ours, Self::OursWithChecksums, Self::Libslirp, Self::Passt];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursWithChecksums => "ours, checksums",
            Self::Libslirp => "libslirp",
            Self::Passt => "passt",
        }
    }
}

/// The programs of others.
pub struct Peers {
    passt: PathBuf,
    /// Names and versions.
    pub versions: String,
}

impl Peers {
    /// Finds them; what is not installed is taken from Debian's packages, unpacked into `work`.
    ///
    /// # Errors
    /// No package, no right to install QEMU.
    pub fn find(work: &Path) -> Result<Self> {
        let qemu = engine::setup::qemu()?;
        // passt's own --version knows none in Debian's build.
        let installed = |package| read(Command::new("dpkg-query").args(["-W", "-f", "${Version}", package]));
        let (passt, passt_version) = match which("passt").map(|path| (path, installed("passt"))) {
            Some((path, Ok(version))) => (path, version),
            _ => unpack_passt(work)?,
        };
        let slirp = installed("libslirp0")?;
        let versions = format!("libslirp {slirp} in {qemu}, passt {passt_version}");
        Ok(Self { passt, versions })
    }
}

/// The program and its package's version.
fn unpack_passt(work: &Path) -> Result<(PathBuf, String)> {
    let dir = work.join("passt");
    let program = dir.join("usr/bin/passt");
    fs::create_dir_all(&dir)?;
    run(Command::new("apt-get").args(["-qq", "download", "passt"]).current_dir(&dir))?;
    let mut files = fs::read_dir(&dir)?.flatten().map(|entry| entry.path());
    let package = files.find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package = package.context("apt-get downloaded no package of passt")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&dir))?;
    ensure!(program.is_file(), "{} is not in the package", program.display());
    let version = read(Command::new("dpkg-deb").arg("-f").arg(&package).arg("Version"))?;
    Ok((program, version))
}

/// A relay that runs.
pub struct Relay {
    child: Child,
}

impl Relay {
    /// Starts one; with it the guest's end of its wire.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(kind: Kind, peers: &Peers, dir: &Path) -> Result<(Self, UnixStream)> {
        let socket = dir.join(format!("{kind:?}.sock"));
        let mut command = match kind {
            Kind::Ours | Kind::OursWithChecksums => ours_command(kind == Kind::OursWithChecksums, &socket)?,
            Kind::Libslirp => libslirp_command(&socket),
            Kind::Passt => passt_command(peers, &socket),
        };
        let mut relay = Self::spawn(&mut command)?;
        let stream = relay.until(&command, || UnixStream::connect(&socket).ok())?;
        Ok((relay, stream))
    }

    /// Starts passt for somebody else to connect to.
    ///
    /// # Errors
    /// It does not start.
    pub fn spawn_passt(peers: &Peers, socket: &Path) -> Result<Self> {
        let mut command = passt_command(peers, socket);
        let mut relay = Self::spawn(&mut command)?;
        relay.until(&command, || socket.exists().then_some(()))?;
        Ok(relay)
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot run {:?}", command.get_program()))?;
        Ok(Self { child })
    }

    /// Looks again and again until it listens.
    fn until<T>(&mut self, command: &Command, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at once ({status}): {command:?}");
            }
            ensure!(begun.elapsed() < LIMIT, "it does not listen: {command:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processor time of the process in ns (proc(5), schedstat).
    pub fn cpu_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let spent = |dir: PathBuf| -> Option<u64> {
            let text = fs::read_to_string(dir.join("schedstat")).ok()?;
            text.split(' ').next()?.parse().ok()
        };
        tasks.filter_map(|task| spent(task.path())).sum()
    }

    /// Descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ours_command(checksums: bool, socket: &Path) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("__relay").arg(socket);
    if checksums {
        command.arg("--checksums");
    }
    Ok(command)
}

fn libslirp_command(socket: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "none", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-netdev", "user,id=u", "-netdev", "hubport,id=a,hubid=0,netdev=u"]);
    command.arg("-netdev");
    command.arg(format!("stream,id=s,server=on,addr.type=unix,addr.path={}", socket.display()));
    command.args(["-netdev", "hubport,id=b,hubid=0,netdev=s"]);
    command
}

fn passt_command(peers: &Peers, socket: &Path) -> Command {
    let mut command = Command::new(&peers.passt);
    command.args(["--foreground", "--quiet", "--ipv4-only", "--no-dhcp"]).arg("--socket").arg(socket);
    command.args(["--address", &GUEST.to_string(), "--netmask", "255.255.255.0"]);
    command.args(["--gateway", &GATEWAY.to_string(), "--mac-addr", "52:55:0a:00:02:02"]);
    if rustix::process::geteuid().is_root() {
        // Not as nobody, who has no way to the socket's directory.
        command.args(["--runas", "0"]);
    }
    command
}
