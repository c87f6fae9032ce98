//! Folders of the host: mounted where the host says.
//!
//! All of them are directories (or files) of one file system, by their numbers in its root. That root is mounted where
//! nobody looks, only while what is wanted is taken from it; what is mounted then is a piece of it. Whatever is mounted
//! already (a restored machine's folders) stays as it is: the device brings it to its new place by itself.

use crate::world::{World, read_text};
use agent_protocol::{ErrorKind, FOLDERS, Failure, MountSpec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_remount, move_mount, open_tree,
    unmount,
};
use std::path::Path;

/// The file system's name in the kernel.
const KIND: &str = "virtiofs";
/// How far ahead of a reader the kernel asks for a folder's pages, KiB: what one request can move, instead of the kernel's
/// 128 (docs/adr/0171).
const READ_AHEAD: &[u8] = b"1008";

/// One of them.
pub struct Folder<'a> {
    /// Its name in the root.
    pub id: u32,
    /// Whether it is a file.
    pub file: bool,
    /// Where it goes.
    pub spec: &'a MountSpec,
}

/// Mounts what is not mounted yet.
///
/// # Errors
/// The first that cannot be, by its place.
pub fn mount_folders(world: &World, folders: &[Folder<'_>]) -> Result<(), Failure> {
    let table = if folders.is_empty() { String::new() } else { read_text("/proc/self/mountinfo") };
    let missing: Vec<&Folder<'_>> = folders.iter().filter(|folder| !is_mounted(&table, folder)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let failure = |what: &str, error: Errno| {
        Failure::new(ErrorKind::Other, format!("mounting the host's folder{what}: {error}"))
    };
    let place = world.run.join("folders");
    file_system(&place).map_err(|error| failure("s", error))?;
    let mounted = missing.iter().try_for_each(|folder| {
        mount_one(&place, folder).map_err(|error| failure(&format!(" at {}", folder.spec.path), error))
    });
    unmount(&place, UnmountFlags::DETACH).map_err(|error| failure("s: hiding their root", error))?;
    mounted
}

fn flags() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV
}

/// The root that holds them all, mounted at `place`, which is for root's eyes.
fn file_system(place: &Path) -> Result<(), Errno> {
    match rustix::fs::mkdir(place, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    mount(FOLDERS, place, KIND, flags(), c"")?;
    read_ahead(place);
    Ok(())
}

/// Has the kernel ask for more at once. Best effort: it is as right without, and takes more requests.
fn read_ahead(place: &Path) {
    let Ok(stat) = rustix::fs::stat(place) else { return };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let _ = std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD);
}

fn mount_one(root: &Path, folder: &Folder<'_>) -> Result<(), Errno> {
    make_place(folder)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, root.join(folder.id.to_string()), clone)?;
    move_mount(&tree, "", CWD, &folder.spec.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    if folder.spec.read_only {
        mount_remount(&folder.spec.path, MountFlags::BIND | MountFlags::RDONLY | flags(), c"")?;
    }
    Ok(())
}

/// A directory or file to mount on, with the directories above it.
fn make_place(folder: &Folder<'_>) -> Result<(), Errno> {
    let path = Path::new(&folder.spec.path);
    let directories = if folder.file { path.parent().unwrap_or(path) } else { path };
    for place in directories.ancestors().collect::<Vec<_>>().into_iter().rev() {
        match rustix::fs::mkdir(place, Mode::from_bits_retain(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    if folder.file && rustix::fs::stat(path).is_err() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::from_bits_retain(0o644))?;
    }
    Ok(())
}

/// Whether a line of mountinfo (proc(5)) is this folder in its place.
fn is_mounted(table: &str, folder: &Folder<'_>) -> bool {
    let (root, place) = (format!("/{}", folder.id), escaped(&folder.spec.path));
    table.lines().any(|line| {
        let Some((front, back)) = line.split_once(" - ") else { return false };
        let mut words = front.split(' ').skip(3);
        words.next() == Some(&root) && words.next() == Some(&place) && back.split(' ').next() == Some(KIND)
    })
}

/// A path as mountinfo writes it.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::MountSource;

    #[test]
    fn what_is_mounted_is_found_in_the_table() {
        let table = "22 1 0:20 / / rw - overlay overlay rw\n\
                     40 22 0:30 /3 /srv/a\\040b rw,nosuid - virtiofs smolvm rw\n\
                     41 22 0:31 /4 /mnt rw - ext4 /dev/vdc rw\n";
        let there = |id, path: &str| {
            let source = MountSource::Folder { id, file: false };
            let spec = MountSpec { source, path: path.into(), read_only: false };
            is_mounted(table, &Folder { id, file: false, spec: &spec })
        };
        assert!(there(3, "/srv/a b"));
        for (id, path) in [(2, "/srv/a b"), (3, "/srv"), (4, "/mnt")] {
            assert!(!there(id, path), "{id} at {path}");
        }
    }
}
