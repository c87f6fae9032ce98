//! `cp`: files between host and machine, as tar streams over the agent (docker's semantics).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use agent_protocol::{Client, ClientError, FrameKind, PathKind, PathStat, Reply, Request};
use anyhow::{Context, Result, bail};
use artifact::space;
use instance::Instance;

use crate::args::Cp;
use crate::cmd::exec::agent;
use crate::cmd::plan_of;
use crate::launch::Home;
use crate::mounts;
use crate::resolve::{Place, place};

pub fn cp(cp: &Cp, home: &Home) -> Result<u8> {
    match (place(&cp.from), place(&cp.to)) {
        (Place::Guest { name, path }, to @ (Place::Host(_) | Place::Tar)) => {
            out(&name, &path, &to, cp, home)?
        }
        (from @ (Place::Host(_) | Place::Tar), Place::Guest { name, path }) => {
            into(&from, &name, &path, cp, home)?
        }
        (Place::Guest { .. }, Place::Guest { .. }) => {
            bail!("copying between two machines goes over the host: cp twice")
        }
        _ => bail!("one side must be a machine: NAME:PATH"),
    }
    Ok(0)
}

fn out(name: &str, path: &str, to: &Place, cp: &Cp, home: &Home) -> Result<()> {
    let mut client = Client::new(agent(name, home)?);
    let request = Request::CopyOut { path: path.to_owned(), follow: cp.follow_link };
    let stat = match client.call(&request)? {
        Reply::Stat(stat) => stat,
        _ => bail!("the guest's agent answered with something else; is it of another version?"),
    };
    let mut data = Data { client, rest: Vec::new(), ended: false };
    match to {
        Place::Host(to) => unpack(&mut data, &stat, to),
        _ => io::copy(&mut data, &mut io::stdout().lock()).map(drop).context("writing the tar"),
    }
}

/// The bytes of data frames.
struct Data<S> {
    client: Client<S>,
    rest: Vec<u8>,
    ended: bool,
}

impl<S: Read + Write> Read for Data<S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            let frame = self.client.next_frame().map_err(io::Error::other)?;
            match frame.kind {
                FrameKind::Data => self.rest = frame.payload,
                FrameKind::DataEnd => self.ended = true,
                other => return Err(io::Error::other(ClientError::Unexpected(other))),
            }
        }
        let n = self.rest.len().min(to.len());
        to[..n].copy_from_slice(&self.rest[..n]);
        self.rest.drain(..n);
        Ok(n)
    }
}

/// Into a directory that is there: under its own name. Else: as that name. The tar comes from a
/// guest: the library keeps every entry below the directory.
fn unpack(data: &mut impl Read, stat: &PathStat, to: &Path) -> Result<()> {
    let inside = to.is_dir();
    let mut archive = tar::Archive::new(data);
    archive.set_preserve_permissions(false);
    if inside {
        return archive.unpack(to).with_context(|| format!("unpacking into {}", to.display()));
    }
    let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Unpacked beside the goal under a name of our own, then renamed: what the guest called it
    // does not matter.
    let stage = parent.join(format!(".smolvm-cp-{}", std::process::id()));
    fs::create_dir(&stage).with_context(|| format!("making {}", stage.display()))?;
    let moved = archive.unpack(&stage).and_then(|()| {
        let whole_dir = stat.kind == PathKind::Directory && stat.name.is_empty();
        if whole_dir { fs::rename(&stage, to) } else { fs::rename(stage.join(&stat.name), to) }
    });
    let _ = fs::remove_dir_all(&stage);
    moved.with_context(|| format!("unpacking to {}", to.display()))
}

fn into(from: &Place, name: &str, path: &str, cp: &Cp, home: &Home) -> Result<()> {
    if let Place::Host(host) = from {
        check_room(host, name, path, cp.follow_link, home)?;
    }
    let (dir, rename) = target(name, path, from, home)?;
    let owner = matches!(from, Place::Host(_)).then_some((0, 0));
    put(agent(name, home)?, dir, owner, |sink| match from {
        Place::Host(host) => pack(host, rename.as_deref(), cp.follow_link, sink),
        _ => io::copy(&mut io::stdin().lock(), sink).map(drop).context("reading the tar"),
    })
}

/// Places in the guest whose files are no files of this host's disk.
const IN_MEMORY: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// Refuses what this host's disk has no room for: the guest, whose disk is as large as it was made, would take it, and
/// lose it when it comes to write it down.
fn check_room(host: &Path, name: &str, path: &str, follow: bool, home: &Home) -> Result<()> {
    let instance = Instance::open(&home.dirs, name)?;
    let path = Path::new(path);
    let folders = mounts::folders(&plan_of(&instance)?.mounts);
    let elsewhere = IN_MEMORY.iter().any(|dir| path.starts_with(dir))
        || folders.iter().any(|folder| path.starts_with(&folder.guest));
    if !elsewhere {
        space::check(host, &instance.path(""), bytes(host, follow))?;
    }
    Ok(())
}

/// Bytes of a file, or of all files below a directory. What cannot be read is told when it is packed.
fn bytes(path: &Path, follow: bool) -> u64 {
    let meta = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    match meta {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(meta) if meta.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.fold(0, |sum: u64, entry| sum.saturating_add(bytes(&entry.path(), false)))
        }
        _ => 0,
    }
}

/// Unpacks the tar that `write` writes into a directory of the guest, with its owners or this one.
pub fn put(
    stream: UnixStream,
    dir: String,
    owner: Option<(u32, u32)>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut client = Client::new(stream);
    client.start(&Request::CopyIn { path: dir, owner })?;
    write(&mut Sink(&mut client))?;
    client.send_mark(FrameKind::DataEnd)?;
    match client.reply()? {
        Reply::Done => Ok(()),
        _ => bail!("the guest's agent answered with something else; is it of another version?"),
    }
}

/// The directory in the guest to unpack in, and another name for the source where `path` is not
/// a directory.
fn target(name: &str, path: &str, from: &Place, home: &Home) -> Result<(String, Option<String>)> {
    let stat = Client::new(agent(name, home)?).call(&Request::Stat { path: path.to_owned(), follow: true });
    if let Ok(Reply::Stat(stat)) = &stat
        && stat.kind == PathKind::Directory
    {
        return Ok((path.to_owned(), None));
    }
    if *from == Place::Tar || path.ends_with('/') {
        bail!("`{name}:{path}` is not a directory in the machine");
    }
    let (dir, last) = path.rsplit_once('/').unwrap_or(("/", path));
    Ok((if dir.is_empty() { "/".into() } else { dir.into() }, Some(last.to_owned())))
}

struct Sink<'a, S>(&'a mut Client<S>);

impl<S: Read + Write> Write for Sink<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_data(FrameKind::Data, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A tar of a file or directory of the host; of its contents where it ends in `/.`.
pub fn pack(host: &Path, rename: Option<&str>, follow: bool, sink: &mut dyn Write) -> Result<()> {
    let context = || format!("reading {}", host.display());
    let mut archive = tar::Builder::new(sink);
    // The guest's agent knows no files with holes.
    archive.sparse(false);
    archive.follow_symlinks(follow);
    let meta = if follow { fs::metadata(host) } else { fs::symlink_metadata(host) }.with_context(context)?;
    let contents = host.as_os_str().as_encoded_bytes().ends_with(b"/.");
    let own = fs::canonicalize(host).with_context(context)?;
    let own = own.file_name().and_then(|n| n.to_str()).unwrap_or(".").to_owned();
    let name = match rename {
        Some(name) => name.to_owned(),
        None if contents => ".".to_owned(),
        None => own,
    };
    if meta.is_dir() {
        archive.append_dir_all(&name, host).with_context(context)?;
    } else if meta.is_file() {
        archive.append_file(&name, &mut File::open(host).with_context(context)?).with_context(context)?;
    } else {
        archive.append_path_with_name(host, &name).with_context(context)?;
    }
    archive.finish().with_context(context)
}
