//! Power failures: a file system on a file, and that file as it is at an instant.
//!
//! What lies in the backing file is what the file system gave its disk; what is in the page cache only is lost, as
//! with the power. The file system (ext4) is mounted so that it gives as little as it may, and in the order that is
//! worst for the careless: names before the data that they stand for, and nothing by itself for ten minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Names before data, no help for who replaces a file without fsync, no commit by itself.
const OPTIONS: &str = "loop,data=writeback,noauto_da_alloc,commit=600";

/// A mounted file system, unmounted on drop.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// An empty one of `mib` MiB, with its files at `at` and beside it; nothing, said aloud, where this user may not
    /// mount.
    pub fn make(at: &Path, mib: u64) -> Option<Self> {
        let disk = Self::at(at);
        fs::File::create(&disk.image).expect("an image").set_len(mib << 20).expect("its length");
        let lazily = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        let made = ok(Command::new("mkfs.ext4").args(["-q", "-F", "-E", lazily]).arg(&disk.image));
        let mounted = made && disk.mount(OPTIONS);
        if !mounted {
            eprintln!("skipped: mounting a file system needs root, mkfs.ext4 and a loop device");
        }
        mounted.then_some(disk)
    }

    fn at(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        Self { image: at.with_extension("image"), mount: at.to_owned() }
    }

    fn mount(&self, options: &str) -> bool {
        ok(Command::new("mount").args(["-t", "ext4", "-o", options]).arg(&self.image).arg(&self.mount))
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The disk after its power failed just now and came again, at `at`. Nobody writes to this one meanwhile
    /// ([`pause`]).
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn cut(&self, at: &Path) -> Self {
        let after = Self::at(at);
        assert!(ok(Command::new("cp").arg("--sparse=always").arg(&self.image).arg(&after.image)), "cp");
        assert!(after.mount("loop"), "the file system does not come up again");
        after
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        ok(Command::new("umount").arg("-l").arg(&self.mount));
        let _ = fs::remove_file(&self.image);
    }
}

fn ok(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Stops a process where it is; returns when it stands still.
///
/// # Panics
/// When it is gone.
pub fn pause(child: &Child) {
    let pid = child.id().to_string();
    assert!(ok(Command::new("kill").args(["-STOP", &pid])), "the process is gone");
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
        // The state follows the name, which is in parentheses (proc(5)).
        if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')) {
            return;
        }
        std::thread::yield_now();
    }
}
