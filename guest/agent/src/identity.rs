//! /etc/machine-id: which of its copies a machine is.
//!
//! Problem: each copy of a machine gets an id of its own while it wakes. Written to the disk that was half of the pages
//! that a copy's guest wrote in its first seconds (a new inode, the journal, its commit), each of them in the host's
//! memory as often as there are copies.
//!
//! Strategy: before a freeze a file of /run, in memory, with the same contents is mounted over it ([`lay_over`]); a
//! restore writes there ([`write`]). At the machine's end the contents go to the file on the disk ([`keep`]).

use crate::world::World;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};
use std::io;

/// Relative to the root.
const PATH: &str = "etc/machine-id";
/// 32 digits and a line's end (machine-id(5)), and room to see that there is more.
const LIMIT: usize = 64;
/// `TMPFS_MAGIC` (statfs(2)).
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

fn open(world: &World, flags: OFlags) -> io::Result<OwnedFd> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::from_bits_retain(0o444) } else { Mode::empty() };
    Ok(rustix::fs::openat2(&world.root, PATH, flags | OFlags::CLOEXEC, mode, ResolveFlags::IN_ROOT)?)
}

/// Whether what is seen there is in memory.
fn in_memory(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == TMPFS)
}

/// Mounts a file in memory over it, unless there is one.
///
/// # Errors
/// The kernel's; the machine is as it was then.
pub fn lay_over(world: &World) -> io::Result<()> {
    let below = match open(world, OFlags::PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            open(world, OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK)?
        }
        other => other?,
    };
    if in_memory(&below) {
        return Ok(());
    }
    let text = world.read_small(PATH, LIMIT);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let above = rustix::fs::open(world.run.join("machine-id"), flags, Mode::from_bits_retain(0o444))?;
    rustix::io::write(&above, &text)?;
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
pub fn write(world: &World, text: &str) -> io::Result<()> {
    let file = open(world, OFlags::WRONLY | OFlags::CREATE | OFlags::NONBLOCK)?;
    rustix::io::pwrite(&file, text.as_bytes(), 0)?;
    if rustix::fs::fstat(&file)?.st_size > text.len() as i64 {
        rustix::fs::ftruncate(&file, text.len() as u64)?;
    }
    Ok(())
}

/// Brings what was written in memory to the file on the disk: a machine that is booted again is the same one.
///
/// # Errors
/// The kernel's.
pub fn keep(world: &World) -> io::Result<()> {
    if !in_memory(&open(world, OFlags::PATH)?) {
        return Ok(());
    }
    let text = world.read_small(PATH, LIMIT);
    unmount(format!("/{PATH}"), UnmountFlags::DETACH)?;
    match String::from_utf8(text) {
        Ok(text) if !text.is_empty() && world.read_small(PATH, LIMIT) != text.as_bytes() => {
            write(world, &text)
        }
        _ => Ok(()),
    }
}
