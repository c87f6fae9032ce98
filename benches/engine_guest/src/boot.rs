//! PID 1: says that it is there, puts the root together as the agent does, opens the channel, serves.

use std::fs::{self, File, OpenOptions};
use std::io::Write;

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::protocol::{PORT, Result, UP, VSOCK_WORD};
use crate::{serve, sys};

/// Does not come back while the channel lives; the end of PID 1 ends the machine (`panic=-1`).
///
/// # Errors
/// What the work cannot do without.
pub fn run() -> Result<()> {
    // Straight to the console, which the kernel opened: this is where a boot's clock stops.
    println!("{UP}");
    let _ = std::io::stdout().flush();
    try_mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    try_mount("proc", "/proc", "proc", MountFlags::empty(), "")?;
    root()?;
    below_root()?;
    let channel = channel()?;
    let from = channel.try_clone().map_err(|e| format!("the channel: {e}"))?;
    serve::serve(from, channel)
}

fn try_mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| format!("mounting {kind} at {target}: {e}");
    fs::create_dir_all(target).map_err(|e| failed(&e))?;
    let data = std::ffi::CString::new(data).map_err(|e| failed(&e))?;
    mount(source, target, kind, flags, data.as_c_str()).map_err(|e| failed(&e))
}

/// The agent's root: the image, the writable disk, an overlay of both, and the move there.
fn root() -> Result<()> {
    try_mount("/dev/vda", "/base", "erofs", MountFlags::RDONLY | MountFlags::NOATIME, "")?;
    let disk = "discard,noinit_itable,no_prefetch_block_bitmaps,noblock_validity";
    try_mount("/dev/vdb", "/rw", "ext4", MountFlags::NOATIME, disk)?;
    for dir in ["/rw/upper", "/rw/work", "/newroot"] {
        fs::create_dir_all(dir).map_err(|e| format!("{dir}: {e}"))?;
    }
    let options = "lowerdir=/base,upperdir=/rw/upper,workdir=/rw/work,xino=on,redirect_dir=on,metacopy=off,index=off,uuid=null";
    try_mount("root", "/newroot", "overlay", MountFlags::NOATIME, options)?;
    for dir in ["dev", "proc"] {
        let target = format!("/newroot/{dir}");
        let _ = fs::create_dir_all(&target);
        mount_move(format!("/{dir}"), &target).map_err(|e| format!("{target}: {e}"))?;
    }
    let moved = rustix::process::chdir("/newroot")
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::chdir("/"));
    moved.map_err(|e| format!("moving to the new root: {e}"))
}

/// What programs expect.
fn below_root() -> Result<()> {
    let none = MountFlags::empty();
    try_mount("sysfs", "/sys", "sysfs", none, "")?;
    try_mount("devpts", "/dev/pts", "devpts", none, "gid=5,mode=620,ptmxmode=666")?;
    try_mount("tmpfs", "/dev/shm", "tmpfs", none, "mode=1777")?;
    try_mount("tmpfs", "/run", "tmpfs", none, "mode=0755")?;
    let _ = std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd");
    Ok(())
}

/// vsock where the command line says so, else the first serial port, which is then nobody else's.
fn channel() -> Result<File> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if line.split_ascii_whitespace().any(|word| word == VSOCK_WORD) {
        return sys::accept_vsock(PORT).map_err(|e| format!("vsock: {e}"));
    }
    let serial = "/dev/ttyS0";
    let file =
        OpenOptions::new().read(true).write(true).open(serial).map_err(|e| format!("{serial}: {e}"))?;
    let mut settings = tcgetattr(&file).map_err(|e| format!("{serial}: {e}"))?;
    settings.make_raw();
    tcsetattr(&file, OptionalActions::Now, &settings).map_err(|e| format!("{serial}: {e}"))?;
    Ok(file)
}
