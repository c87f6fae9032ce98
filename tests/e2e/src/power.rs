//! Power failures: a file system on a file, and that file as it is at an instant.
//!
//! What lies in the backing file is what the file system gave its disk; what is in the page cache only is lost, as
//! with the power. The file system (ext4) is mounted so that it gives as little as it may, and in the order that is
//! worst for the careless: names before the data that they stand for, and nothing by itself for ten minutes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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

    /// The power fails just now, and the disk comes again in its own place. Nobody writes to it ([`pause_all`]) when
    /// this is called, and `end` ends who did.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn lose_power(&self, end: impl FnOnce()) {
        let left = self.image.with_extension("left");
        copy(&self.image, &left);
        end();
        self.replace(|image| fs::rename(&left, image).expect("the disk's file"));
    }

    /// Notes what is on it; nobody uses it. [`Disk::again`] brings that back.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn keep(&self) {
        self.replace(|image| copy(image, &image.with_extension("kept")));
    }

    /// What was there when [`Disk::keep`] was called last; nobody uses it.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn again(&self) {
        self.replace(|image| {
            // Another file: what is still to be written to the old one stays out of this one.
            fs::remove_file(image).expect("the disk's file");
            copy(&image.with_extension("kept"), image);
        });
    }

    fn replace(&self, change: impl FnOnce(&Path)) {
        // A process that is ending has no environment to be found by any more, and its files for a moment.
        let begun = Instant::now();
        while !ok(Command::new("umount").arg(&self.mount)) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}: somebody uses it", self.mount.display());
            std::thread::yield_now();
        }
        change(&self.image);
        assert!(self.mount(OPTIONS), "the file system does not come up again");
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(ok(Command::new("cp").arg("--sparse=always").args([from, to])), "cp {}", from.display());
}

impl Drop for Disk {
    fn drop(&mut self) {
        ok(Command::new("umount").arg("-l").arg(&self.mount));
        let _ = fs::remove_file(&self.image);
        let _ = fs::remove_file(self.image.with_extension("kept"));
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
    while !stands(child.id()) {
        std::thread::yield_now();
    }
}

/// Stops processes where they are, and those that they made meanwhile; returns when all stand still.
pub fn pause_all(processes: impl Fn() -> Vec<u32>) {
    let mut before = BTreeSet::new();
    loop {
        let now: BTreeSet<u32> = processes().into_iter().collect();
        now.iter().for_each(|pid| signal(*pid, "-STOP"));
        if now == before && now.iter().all(|pid| stands(*pid)) {
            return;
        }
        before = now;
    }
}

/// Sends a signal to a process that may be gone.
pub fn signal(pid: u32, name: &str) {
    ok(Command::new("kill").args([name, &pid.to_string()]));
}

/// Whether a process executes nothing any more.
fn stands(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses (proc(5)).
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    state.is_none_or(|state| "TZX".contains(state))
}
