//! /etc/machine-id and /etc/hosts: which of its copies a machine is.
//!
//! Problem: each copy of a machine gets an id and a name of its own while it wakes. Written to the disk the id alone was
//! half of the pages that a copy's guest wrote in its first seconds (a new inode, the journal, its commit), each of them
//! in the host's memory as often as there are copies.
//!
//! Strategy: a file of /run, in memory, with the same contents is mounted over the one on the disk ([`File::lay_over`]):
//! the id's before a freeze, since every copy gets one; the names' at a restore that brings one. At the machine's end
//! the contents go to the file on the disk ([`keep`]).

use crate::world::World;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use std::io;

/// A file that says who the machine is.
pub struct File {
    /// Relative to the root.
    path: &'static str,
    /// In /run/smolvm.
    in_memory: &'static str,
    mode: u32,
    /// Most bytes of it that are read: what is larger is left alone.
    limit: usize,
    /// Whether two contents differ in no more than what the machine is given again at its next start.
    alike: fn(&[u8], &[u8]) -> bool,
}

/// 32 digits and a line's end (machine-id(5)), and room to see that there is more.
pub const MACHINE_ID: File = File {
    path: "etc/machine-id",
    in_memory: "machine-id",
    mode: 0o444,
    limit: 64,
    alike: |one, other| one == other,
};
/// hosts(5).
const HOSTS: File = File {
    path: "etc/hosts",
    in_memory: "hosts",
    mode: 0o644,
    limit: 64 << 10,
    alike: |one, other| without_name(one).eq(without_name(other)),
};
/// Of the machine itself and of no interface, as Debian and our root images have it.
const OWN_ADDRESS: &str = "127.0.1.1";
/// What our root images call the machine: the name that its kernel begins with.
const FIRST_NAME: &[u8] = b"smolvm";
/// `TMPFS_MAGIC` (statfs(2)).
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// Whether what is seen there is in memory.
fn in_memory(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == TMPFS)
}

impl File {
    fn open(&self, world: &World, flags: OFlags) -> io::Result<OwnedFd> {
        let create = flags.contains(OFlags::CREATE);
        let mode = if create { Mode::from_bits_retain(self.mode) } else { Mode::empty() };
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&world.root, self.path, flags, mode, ResolveFlags::IN_ROOT)?)
    }

    /// Mounts a file in memory over it, unless there is one.
    ///
    /// # Errors
    /// The kernel's; the machine is as it was then.
    pub fn lay_over(&self, world: &World) -> io::Result<()> {
        let below = match self.open(world, OFlags::PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.open(world, OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK)?
            }
            other => other?,
        };
        if in_memory(&below) {
            return Ok(());
        }
        let text = world.read_small(self.path, self.limit);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_bits_retain(self.mode);
        let above = rustix::fs::open(world.run.join(self.in_memory), flags, mode)?;
        write_all(&above, &text)?;
        let clone =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(&above, "", clone)?;
        let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&tree, "", &below, "", whole)?)
    }

    /// Replaces its contents in place, at once: whoever watches or holds the file sees the change, and no half.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, world: &World, text: &[u8]) -> io::Result<()> {
        let file = self.open(world, OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK)?;
        write_all(&file, text)?;
        if rustix::fs::fstat(&file)?.st_size > text.len() as i64 {
            rustix::fs::ftruncate(&file, text.len() as u64)?;
        }
        Ok(())
    }

    /// Brings what was written in memory to the file on the disk.
    fn keep(&self, world: &World) -> io::Result<()> {
        match self.open(world, OFlags::PATH) {
            Ok(file) if in_memory(&file) => {}
            _ => return Ok(()),
        }
        let text = world.read_small(self.path, self.limit);
        unmount(format!("/{}", self.path), UnmountFlags::DETACH)?;
        let below = world.read_small(self.path, self.limit);
        if !text.is_empty() && text.len() < self.limit && !(self.alike)(&below, &text) {
            self.write(world, &text)?;
        }
        Ok(())
    }
}

fn write_all(file: &OwnedFd, mut text: &[u8]) -> io::Result<()> {
    let mut at = 0;
    while !text.is_empty() {
        let n = rustix::io::pwrite(file, text, at)?;
        at += n as u64;
        text = text.get(n..).unwrap_or_default();
    }
    Ok(())
}

/// Brings both files of memory to the disk: a machine that is booted again is the same one.
///
/// # Errors
/// The kernel's.
pub fn keep(world: &World) -> io::Result<()> {
    MACHINE_ID.keep(world).and(HOSTS.keep(world))
}

/// Gives the machine its name, and its own address that name in /etc/hosts where no line has it: programs look for the
/// address of their host's name (`sudo`, `hostname -f`). A root without the file is left so.
///
/// # Errors
/// The kernel's.
pub fn set_host_name(world: &World, name: &str, memory: bool) -> io::Result<()> {
    let before = rustix::system::uname().nodename().to_bytes().to_vec();
    rustix::system::sethostname(name.as_bytes())?;
    let text = world.read_small(HOSTS.path, HOSTS.limit);
    if text.is_empty() || text.len() >= HOSTS.limit {
        return Ok(());
    }
    let Some(text) = named(&text, [&before, FIRST_NAME], name.as_bytes()) else { return Ok(()) };
    if memory {
        HOSTS.lay_over(world)?;
    }
    HOSTS.write(world, &text)
}

/// Address and names of a line of hosts(5).
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let said = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    said.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty())
}

/// Lines of hosts(5) but those that give [`OWN_ADDRESS`] one name.
fn without_name(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_name =
        |line: &[u8]| words(line).next() == Some(OWN_ADDRESS.as_bytes()) && words(line).count() == 2;
    text.split(|byte| *byte == b'\n').filter(move |line| !line.is_empty() && !is_name(line))
}

/// hosts(5) with `name` in the place of the line that gives [`OWN_ADDRESS`] one of the names `before` alone, else at its
/// end; nothing where it is in there already.
fn named(text: &[u8], before: [&[u8]; 2], name: &[u8]) -> Option<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.iter().any(|line| words(line).skip(1).any(|word| word == name)) {
        return None;
    }
    let line = [OWN_ADDRESS.as_bytes(), b"\t", name].concat();
    let is_old = |line: &[u8]| before.iter().any(|name| words(line).eq([OWN_ADDRESS.as_bytes(), name]));
    match lines.iter_mut().find(|line| is_old(line)) {
        Some(old) => *old = line,
        None => {
            // What is behind the last line's end is no line.
            if lines.last().is_some_and(Vec::is_empty) {
                lines.pop();
            }
            lines.extend([line, Vec::new()]);
        }
    }
    Some(lines.join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::{FIRST_NAME, HOSTS, named};

    #[test]
    fn a_name_takes_the_place_of_the_one_before_and_of_no_other() {
        let named = |text: &str| {
            named(text.as_bytes(), [b"one", FIRST_NAME], b"two")
                .map(|text| String::from_utf8(text).expect("text"))
        };
        let cases = [
            (
                "127.0.0.1\tlocalhost\n127.0.1.1\tone\n::1 x\n",
                Some("127.0.0.1\tlocalhost\n127.0.1.1\ttwo\n::1 x\n"),
            ),
            ("127.0.1.1 one # me\n", Some("127.0.1.1\ttwo\n")),
            ("127.0.1.1 smolvm\n", Some("127.0.1.1\ttwo\n")),
            ("127.0.1.1 one.net one\n", Some("127.0.1.1 one.net one\n127.0.1.1\ttwo\n")),
            ("10.0.0.1 one", Some("10.0.0.1 one\n127.0.1.1\ttwo\n")),
            ("# 127.0.1.1 one two\n", Some("# 127.0.1.1 one two\n127.0.1.1\ttwo\n")),
            ("10.0.0.1 a two\n127.0.1.1 one\n", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(named(text).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn a_name_alone_is_no_change() {
        let alike = |one: &str, other: &str| (HOSTS.alike)(one.as_bytes(), other.as_bytes());
        assert!(alike("10.0.0.1 a\n127.0.1.1\tone\n", "10.0.0.1 a\n127.0.1.1 two\n"));
        assert!(alike("10.0.0.1 a", "10.0.0.1 a\n127.0.1.1 two\n"));
        assert!(!alike("127.0.1.1 one\n", "127.0.1.1 one two\n"));
        assert!(!alike("127.0.1.1 one\n", "127.0.1.1 one\n10.0.0.1 a\n"));
    }
}
