//! The duties of PID 1 from the kernel's hand-over to the first line.
//!
//! The initial root is an initramfs with only this program. Order: device nodes and /proc; the root (a read-only
//! base image under a writable overlay); what every Linux program expects below it; the move there; the control
//! group; the network's loopback; the listening socket. Failures of what a machine can live without are told on the
//! console and passed over.

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::spawn::OPEN_FILES;
use crate::world::{World, open_directory, open_null, read_text, say};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_move, move_mount, open_tree};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// docs/adr/0042: why each of these.
const OVERLAY_OPTIONS: &str =
    "lowerdir=/base,upperdir=/rw/upper,workdir=/rw/work,xino=on,redirect_dir=on,metacopy=off,index=off";

/// Where the root is put together before it becomes `/`.
const NEW_ROOT: &str = "/newroot";
/// How the writable disk is mounted (kernel documentation, admin-guide/ext4).
const DISK_OPTIONS: &str = "discard,noinit_itable,no_prefetch_block_bitmaps,noblock_validity";

/// The kernel's command line as far as it is ours.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `smolvm.root=`: block device of the base image; `/dev/vda` when absent.
    pub root: Option<String>,
    /// `smolvm.rootfs=`: its file system; erofs when absent.
    pub root_type: Option<String>,
    /// `smolvm.rw=`: block device of the writable disk (ext4); `/dev/vdb` when absent.
    pub writable: Option<String>,
    /// `hostname=`, which newer kernels heed themselves, or `smolvm.hostname=`.
    pub hostname: Option<String>,
    /// `smolvm.net=`: addresses and gateways of the network device.
    pub net: Option<String>,
}

impl Parameters {
    /// Reads the words of a command line; unknown ones are someone else's.
    pub fn parse(line: &str) -> Parameters {
        let mut parameters = Parameters::default();
        for word in line.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else { continue };
            let value = Some(value.to_string()).filter(|value| !value.is_empty());
            match name {
                "smolvm.root" => parameters.root = value,
                "smolvm.rootfs" => parameters.root_type = value,
                "smolvm.rw" => parameters.writable = value,
                "hostname" | "smolvm.hostname" => parameters.hostname = value,
                "smolvm.net" => parameters.net = value,
                _ => {}
            }
        }
        parameters
    }
}

/// Does what PID 1 has to do and gives back an agent that listens.
///
/// # Errors
/// What a machine cannot live without: its root, the listening socket.
pub fn boot() -> io::Result<Agent> {
    let world = surroundings()?;
    let listener = crate::sys::socket::listen_vsock(agent_protocol::AGENT_PORT)
        .map_err(|error| io::Error::new(error.kind(), format!("listening on vsock: {error}")))?;
    Agent::new(listener, world)
}

/// Everything of [`boot`] but the listening.
///
/// # Errors
/// The root cannot be mounted.
pub fn surroundings() -> io::Result<World> {
    rustix::process::umask(Mode::empty());
    make_mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755");
    standard_streams();
    make_mount("proc", "/proc", "proc", quiet(), "");
    let parameters = Parameters::parse(&read_text("/proc/cmdline"));
    let cgroup =
        control_group().map_err(|error| say(&format!("smolvm-agent: control group: {error}\n"))).ok();
    let root = root(&parameters)?;
    below_root();
    if let Some(group) = &cgroup {
        tell("/sys/fs/cgroup", show_group(group));
    }
    // For the agent itself; what it starts gets `spawn::OPEN_FILES`.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(OPEN_FILES.1), maximum: Some(OPEN_FILES.1) });
    tell("bringing up the loopback interface", crate::sys::socket::loopback_up());
    if let Some(net) = &parameters.net {
        tell("bringing up the network", crate::network::bring_up(net));
    }
    let run = PathBuf::from("/run/smolvm");
    let directory = open_directory(Path::new("/"))?;
    let null = open_null()?;
    let (upper, writable) = (root.upper, root.writable);
    let world = World { pid1: true, root: directory, null, run, cgroup, upper, writable };
    if let Some(name) = &parameters.hostname {
        tell("setting the host name", crate::identity::set_host_name(&world, name, false));
    }
    // There from the start, for programs that open it once.
    tell("writing the generation file", crate::restored::write_generation(&world, &[0; 16]));
    Ok(world)
}

fn quiet() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC
}

/// Tells a failure of something the machine can live without.
fn tell<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        say(&format!("smolvm-agent: {what}: {error}\n"));
    }
}

/// A directory with `mode` (the umask is 0); it is there already more often than not.
fn make_directory(path: &str, mode: u32) {
    match rustix::fs::mkdir(path, Mode::from_bits_retain(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => tell(path, Err(error)),
    }
}

fn make_mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) {
    make_directory(target, 0o755);
    tell(target, try_mount(source, target, kind, flags, data));
}

fn try_mount(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Result<(), Errno> {
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    mount(source, target, kind, flags, data.as_c_str())
}

/// Makes sure that descriptors 0 to 2 are open, so that no other file ever gets those numbers.
fn standard_streams() {
    for path in ["/dev/console", "/dev/null", "/dev/null"] {
        let probe = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        if probe.is_ok_and(|fd| rustix::fd::AsRawFd::as_raw_fd(&fd) > 2) {
            return;
        }
        for place in [path, "/dev/null"] {
            if let Ok(fd) = rustix::fs::open(place, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) {
                std::mem::forget(fd);
                break;
            }
        }
    }
}

/// What the agent keeps of the root's parts, which no path leads to any more.
#[derive(Default)]
struct Root {
    /// The overlay's upper directory.
    upper: Option<OwnedFd>,
    /// The writable disk's root.
    writable: Option<OwnedFd>,
}

/// Puts the root together and makes it `/`.
///
/// Without a base image the machine stays in its initramfs.
fn root(parameters: &Parameters) -> io::Result<Root> {
    let device = parameters.root.as_deref().unwrap_or("/dev/vda");
    if parameters.root.is_none() && rustix::fs::stat(device).is_err() {
        return Ok(Root::default());
    }
    let kind = parameters.root_type.as_deref().unwrap_or("erofs");
    for (path, mode) in [("/base", 0o755), ("/rw", 0o755), (NEW_ROOT, 0o755)] {
        make_directory(path, mode);
    }
    let failed = |what: String| {
        move |error: Errno| io::Error::new(io::Error::from(error).kind(), format!("{what}: {error}"))
    };
    try_mount(device, "/base", kind, MountFlags::RDONLY | MountFlags::NOATIME, "")
        .map_err(failed(format!("mounting the base image {device} as {kind}")))?;
    let disk = parameters.writable.as_deref().unwrap_or("/dev/vdb");
    let on_disk = parameters.writable.is_some() || rustix::fs::stat(disk).is_ok();
    if on_disk {
        // No access times: they would turn reading into writing, and so into snapshot size. Nothing in the background
        // either: neither reading ahead of the allocation bitmaps (0.9 M instructions of a boot) nor zeroing inode
        // tables, which on a blank disk are zero. The layout's self-check is for disks that others write.
        try_mount(disk, "/rw", "ext4", MountFlags::NOATIME, DISK_OPTIONS)
            .or_else(|_| try_mount(disk, "/rw", "ext4", MountFlags::NOATIME, ""))
            .map_err(failed(format!("mounting the writable disk {disk} as ext4")))?;
    } else {
        try_mount("tmpfs", "/rw", "tmpfs", MountFlags::empty(), "mode=0755")
            .map_err(failed("mounting /rw".into()))?;
    }
    make_directory("/rw/upper", 0o755);
    make_directory("/rw/work", 0o755);
    let overlay = |options: &str| try_mount("root", NEW_ROOT, "overlay", MountFlags::NOATIME, options);
    overlay(&format!("{OVERLAY_OPTIONS},uuid=null"))
        // Linux before 6.6 knows no such word, and makes no id either.
        .or_else(|error| if error == Errno::INVAL { overlay(OVERLAY_OPTIONS) } else { Err(error) })
        .map_err(failed("mounting the root overlay".into()))?;
    let upper = open_directory(Path::new("/rw/upper"))?;
    let writable = open_directory(Path::new("/rw"))?;
    for name in ["dev", "proc"] {
        let target = format!("{NEW_ROOT}/{name}");
        make_directory(&target, 0o755);
        tell(&target, mount_move(format!("/{name}"), &target));
    }
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(Root { upper: Some(upper), writable: Some(writable).filter(|_| on_disk) })
}

/// Mounts and makes what programs expect below the root.
fn below_root() {
    make_mount("sysfs", "/sys", "sysfs", quiet(), "");
    make_mount(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    );
    make_mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777");
    make_mount("mqueue", "/dev/mqueue", "mqueue", quiet(), "");
    tell("/run", run_directory());
    make_directory("/run/smolvm", 0o755);
    make_directory("/run/lock", 0o1777);
    make_directory("/tmp", 0o1777);
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        let _ = rustix::fs::symlink(target, link);
    }
}

/// A fresh /run with the directories that the image has there: packages and images count on theirs
/// (/run/postgresql, /run/mysqld) with the right owner, and nothing in a machine would make them again.
fn run_directory() -> Result<(), Errno> {
    make_directory("/run", 0o755);
    let before = open_directory(Path::new("/run")).map_err(|_| Errno::NOENT)?;
    try_mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755")?;
    copy_directories(&before, Path::new("/run"), 0);
    Ok(())
}

/// Makes the directories of `from` below `to`, with their modes and owners; nothing else in them.
fn copy_directories(from: &OwnedFd, to: &Path, depth: usize) {
    /// An image's /run is small; a strange one must not hold up the boot.
    const DEPTH: usize = 4;
    const ENTRIES: usize = 256;
    for name in crate::walk::names_in(from).unwrap_or_default().into_iter().take(ENTRIES) {
        let Ok(stat) = rustix::fs::statat(from, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if !FileType::from_raw_mode(stat.st_mode).is_dir() || depth >= DEPTH {
            continue;
        }
        let path = to.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let mode = Mode::from_bits_retain(stat.st_mode & 0o7777);
        let _ = rustix::fs::mkdir(&path, mode);
        let _ = rustix::fs::chown(&path, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        // mkdir(2) makes none that hands its group on.
        let _ = rustix::fs::chmod(&path, mode);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if let Ok(below) = rustix::fs::openat(from, name.as_c_str(), flags, Mode::empty()) {
            copy_directories(&below, &path, depth + 1);
        }
    }
}

/// The group `machine`, on a mount in the initramfs: once the root has moved, no path leads above it.
fn control_group() -> io::Result<Cgroup> {
    make_directory("/cgroup", 0o755);
    try_mount("cgroup2", "/cgroup", "cgroup2", quiet(), "nsdelegate")?;
    make_directory("/cgroup/machine", 0o755);
    Cgroup::open(Path::new("/cgroup/machine"))
}

/// Shows the group at /sys/fs/cgroup as if there were nothing above it.
fn show_group(group: &Cgroup) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(group.fd(), "", flags)?;
    move_mount(&tree, "", CWD, "/sys/fs/cgroup", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_the_words_with_our_prefix() {
        let line = "console=ttyS0 smolvm.root=/dev/vdc smolvm.rootfs=ext4 smolvm.first_line=1 smolvm.hostname=demo quiet\n";
        let parameters = Parameters::parse(line);
        assert_eq!(parameters.root.as_deref(), Some("/dev/vdc"));
        assert_eq!(parameters.root_type.as_deref(), Some("ext4"));
        assert_eq!(parameters.hostname.as_deref(), Some("demo"));
        assert_eq!(parameters.writable, None);
        assert_eq!(Parameters::parse("root=/dev/vdc hostname=other").hostname.as_deref(), Some("other"));
    }

    #[test]
    fn directories_are_made_again_with_their_modes_and_without_their_files() {
        use std::os::unix::fs::PermissionsExt;
        let place = std::env::temp_dir().join(format!("smolvm-agent-run-{}", std::process::id()));
        let (from, to) = (place.join("from"), place.join("to"));
        std::fs::create_dir_all(from.join("postgresql/deeper")).expect("directories");
        std::fs::create_dir_all(&to).expect("a directory");
        std::fs::write(from.join("postgresql/pid"), "1").expect("a file");
        let set =
            |path: &str, mode| std::fs::set_permissions(from.join(path), PermissionsExt::from_mode(mode));
        set("postgresql", 0o2775).expect("a mode");
        set("postgresql/deeper", 0o1700).expect("a mode");
        copy_directories(&open_directory(&from).expect("opened"), &to, 0);
        let mode =
            |path: &str| std::fs::metadata(to.join(path)).map(|m| m.permissions().mode() & 0o7777).ok();
        let seen = (mode("postgresql"), mode("postgresql/deeper"), mode("postgresql/pid"));
        std::fs::remove_dir_all(&place).expect("removed");
        assert_eq!(seen, (Some(0o2775), Some(0o1700), None));
    }

    #[test]
    fn empty_values_and_strange_words_change_nothing() {
        assert_eq!(
            Parameters::parse("smolvm. smolvm.root= =x smolvm.unknown=1 smolvm"),
            Parameters::default()
        );
    }
}
