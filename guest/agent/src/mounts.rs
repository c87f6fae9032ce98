//! Volumes: from an empty slot's disk to files at a path.
//!
//! Problem: a volume's disk comes into its slot (docs/adr/0100) with the restore that this is part of, so the driver
//! may not have looked at it yet; it may be larger than its file system; and what is mounted must never hide what a
//! process goes on using. Strategy: in a forked copy, before the processes go on: wait for the capacity, mount aside,
//! grow, fill a new volume from the directory that it will cover, and only then move the mount to its place.
//!
//! Invariant: a failure leaves nothing at the path. Next: `restored.rs`, `dispatch.rs`.

use crate::copy::path_failure;
use crate::folders::{Folder, mount_folders};
use crate::sys::process::{Fork, exit_now, fork};
use crate::tar::write::Writer;
use crate::walk::{Walk, What, names_in, open_directory};
use crate::worker::Channel;
use crate::world::{World, read_text, read_up_to};
use agent_protocol::{ErrorKind, Failure, MountSource, MountSpec, Reply};
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, waitpid};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// As the root's writable disk (`boot.rs`), and read-only once it is found damaged.
const OPTIONS: &std::ffi::CStr = c"discard,noinit_itable,errors=remount-ro";
/// Slots for volumes; slot 0 is the first disk after the root's two.
const SLOTS: u8 = 4;
/// How often, a millisecond apart, is looked whether the driver has seen the disk.
const LOOKS: u32 = 5000;
/// The only size of blocks that volumes have.
const BLOCK: u64 = 4096;

/// Serves `Mount`.
pub fn serve(world: &World, channel: &mut Channel, mounts: &[MountSpec]) {
    match mount_all(world, mounts) {
        Ok(()) => channel.reply(&Reply::Done),
        Err(failure) => channel.fail(&failure),
    }
}

/// Mounts volumes, then folders: one may go below a volume.
///
/// # Errors
/// The first failure: `BadRequest`, `Busy` where a process uses what would be hidden, else what the kernel says.
pub fn mount_all(world: &World, mounts: &[MountSpec]) -> Result<(), Failure> {
    if !world.pid1 && !mounts.is_empty() {
        return Err(Failure::new(ErrorKind::Unsupported, "this agent is not in a machine of its own"));
    }
    let mut folders = Vec::new();
    for spec in mounts {
        match spec.source {
            MountSource::Volume(slot) => volume(world, spec, slot)?,
            MountSource::Folder { id, file } => folders.push(Folder { id, file, spec }),
        }
    }
    mount_folders(world, &folders)
}

fn volume(world: &World, spec: &MountSpec, slot: u8) -> Result<(), Failure> {
    let failed = |what: &'static str| move |error: io::Error| path_failure(what, &spec.path, &error);
    if slot >= SLOTS || !Path::new(&spec.path).is_absolute() {
        return Err(Failure::new(ErrorKind::BadRequest, format!("no volume {slot} can be at {}", spec.path)));
    }
    let name = format!("vd{}", char::from(b'c' + slot));
    let size = disk_size(&name).ok_or_else(|| {
        let text =
            format!("the disk of the volume at {} (/dev/{name}) did not appear in the guest", spec.path);
        Failure::new(ErrorKind::TimedOut, text)
    })?;
    let device = format!("/dev/{name}");
    if mounted(&device).any(|path| path == spec.path) {
        let there = open_directory(world, &spec.path).map_err(failed("opening the volume at"))?;
        return grow(&there, &device, size, spec).map_err(failed("growing the volume at"));
    }
    not_in_use(world, &spec.path)?;
    make_directories(Path::new(&spec.path)).map_err(failed("making the directory"))?;
    let aside = world.run.join(&name);
    make_directories(&aside).map_err(failed("making a place for the volume at"))?;
    let flags = if spec.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(&device, &aside, "ext4", flags | MountFlags::NOATIME, OPTIONS)
        .map_err(|error| failed("mounting the volume at")(error.into()))?;
    let result = prepare(world, spec, &aside, &device, size)
        .and_then(|()| Ok(mount_move(&aside, &spec.path)?))
        .map_err(failed("preparing the volume at"));
    if result.is_err() {
        let _ = unmount(&aside, UnmountFlags::DETACH);
    }
    let _ = std::fs::remove_dir(&aside);
    result
}

/// What is missing of a path, for everybody to read: the agent's umask is 0.
fn make_directories(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Grows it, and fills it where it is new.
fn prepare(world: &World, spec: &MountSpec, aside: &Path, device: &str, size: u64) -> io::Result<()> {
    let root = crate::world::open_directory(aside)?;
    grow(&root, device, size, spec)?;
    let mut names = names_in(&root)?;
    names.retain(|name| name.as_c_str() != c"lost+found");
    if spec.read_only || !names.is_empty() {
        return Ok(());
    }
    // Programs that want an empty directory mean it. (A check of the file system makes it again.)
    let _ = std::fs::remove_dir(aside.join("lost+found"));
    fill(world, &spec.path, aside)
}

/// The disk's bytes, once its driver knows that it is there.
fn disk_size(name: &str) -> Option<u64> {
    let path = format!("/sys/block/{name}/size");
    for _ in 0..LOOKS {
        // In sectors of 512 bytes, whatever the disk's.
        match read_text(&path).trim().parse::<u64>() {
            Ok(0) => std::thread::sleep(Duration::from_millis(1)),
            Ok(sectors) => return Some(sectors * 512),
            Err(_) => return None,
        }
    }
    None
}

/// Grows the file system to its disk's size.
fn grow(root: &OwnedFd, device: &str, size: u64, spec: &MountSpec) -> io::Result<()> {
    let blocks = size / BLOCK;
    if spec.read_only || blocks_of(device)? >= blocks {
        return Ok(());
    }
    crate::sys::ext4::grow(root, blocks)
}

/// How many blocks the superblock says there are (kernel documentation, filesystems/ext4/super.rst; without the
/// feature `64bit` there is no higher half).
fn blocks_of(device: &str) -> io::Result<u64> {
    let mut word = [0; 4];
    let disk = std::fs::File::open(device)?;
    std::os::unix::fs::FileExt::read_exact_at(&disk, &mut word, 1024 + 4)?;
    Ok(u32::from_le_bytes(word).into())
}

/// Copies what is in `from` into the new volume at `to`, and the directory's own owner and mode.
fn fill(world: &World, from: &str, to: &Path) -> io::Result<()> {
    let source = open_directory(world, from)?;
    let stat = rustix::fs::fstat(&source)?;
    if !names_in(&source)?.is_empty() {
        copy(world, &source, to)?;
    }
    rustix::fs::chown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    Ok(rustix::fs::chmod(to, Mode::from_bits_retain(stat.st_mode & 0o7777))?)
}

/// One process walks, this one unpacks, as between guest and host.
fn copy(world: &World, source: &OwnedFd, to: &Path) -> io::Result<()> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let Fork::Parent(walker) = fork(None)? else {
        drop(reader);
        let mut archive = Writer::new(std::fs::File::from(writer));
        let walked = Walk::new(world, &mut archive, What::Merged).add(source, c".", b".");
        exit_now(i32::from(walked.and_then(|()| archive.finish().map(drop)).is_err()))
    };
    drop(writer);
    let to = String::from_utf8_lossy(to.as_os_str().as_bytes()).into_owned();
    let unpacked = crate::unpack::unpack(world, &mut std::fs::File::from(reader), &to, None);
    let walked = waitpid(Some(walker), WaitOptions::empty())?;
    unpacked.map_err(|failure| io::Error::other(failure.text))?;
    match walked {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        _ => Err(io::Error::other("what the new volume is to hold could not be read")),
    }
}

/// Refuses to hide what a process of the user's has open: it would go on there, and its data be lost.
fn not_in_use(world: &World, path: &str) -> Result<(), Failure> {
    let members = world.cgroup.as_ref().map(crate::cgroup::Cgroup::members).unwrap_or_default();
    for pid in members {
        let Some(open) = open_below(pid, Path::new(path)) else { continue };
        let name = read_text(&format!("/proc/{pid}/comm"));
        let text = format!(
            "process {pid} ({}) was frozen with {open} open: it would go on there and never see a volume at {path}. \
             Boot the machine with the volume (--cold), or mount it elsewhere",
            name.trim()
        );
        return Err(Failure::new(ErrorKind::Busy, text));
    }
    Ok(())
}

/// What a process has open at or below `path`.
fn open_below(pid: u32, path: &Path) -> Option<String> {
    let process = format!("/proc/{pid}");
    let descriptors = std::fs::read_dir(format!("{process}/fd")).into_iter().flatten().flatten();
    let links = descriptors.map(|entry| entry.path()).chain([format!("{process}/cwd").into()]);
    let targets = links.filter_map(|link| std::fs::read_link(link).ok());
    let below = targets.into_iter().find(|target| target.starts_with(path))?;
    Some(below.to_string_lossy().into_owned())
}

/// Where a device is mounted.
fn mounted(device: &str) -> impl Iterator<Item = String> + use<> {
    let device = device.to_owned();
    mounts().into_iter().filter(move |(source, _)| *source == device).map(|(_, path)| path)
}

/// Every mount: source and place (proc(5), /proc/pid/mounts).
fn mounts() -> Vec<(String, String)> {
    let path = rustix::fs::open("/proc/self/mounts", rustix::fs::OFlags::RDONLY, Mode::empty());
    let text = path.map(|file| read_up_to(&file, 4 << 20)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some((unescaped(words.next()?), unescaped(words.next()?)))
    };
    text.lines().filter_map(line).collect()
}

/// Spaces and their like are written as `\040`.
fn unescaped(word: &str) -> String {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*first));
        rest = tail.get(if value.is_some() { 3 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Unmounts every volume before the machine ends; one that is busy becomes read-only.
pub fn unmount_all() {
    for slot in 0..SLOTS {
        for path in mounted(&format!("/dev/vd{}", char::from(b'c' + slot))) {
            if let Err(Errno::BUSY) = unmount(&path, UnmountFlags::empty()) {
                let _ = mount_remount(&path, MountFlags::RDONLY, "");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_with_strange_names_are_read() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/plain\\x\\99"), "/plain\\x\\99");
    }

    #[test]
    fn this_process_has_its_directory_open() {
        let here = std::env::current_dir().expect("a directory");
        let me = std::process::id();
        assert!(open_below(me, &here).is_some());
        assert_eq!(open_below(me, Path::new("/nowhere/at/all")), None);
    }
}
