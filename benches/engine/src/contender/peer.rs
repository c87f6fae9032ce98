//! QEMU's TCG: its leanest machine (`microvm`), our kernel entered as our own loader enters it.
//!
//! What QEMU 7.2's TCG lacks of the portable CPU cannot be given to it: kvmclock (it takes the TSC, at
//! the frequency told by `tsc_early_khz=`), x2APIC, and the TSC-deadline timer, for want of which the
//! kernel calibrates the APIC timer for a tenth of a second of spinning ([`CALIBRATION`]), which is
//! taken off its boot.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use disk::{Disk, SparseDisk};
use engine_guest::protocol::{CALL, READY};
use tempfile::TempDir;

use super::peer_image::{self, Image};
use super::qmp::Qmp;
use super::{BOOT_LIMIT, Contender, Kind, is_answer, is_up};
use crate::setup::Setup;

/// x86-64-v2 and little else, as `arch::x86_64::cpuid::portable` has it.
pub const CPU: &str = "qemu64,vendor=GenuineIntel,family=6,model=28,stepping=10,-svm,-vme,-sep,-mce,-mca,-mtrr,\
     +ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm,+rdrand,+rdtscp,+nx,+arat,-x2apic,-tsc-deadline,-kvm,+hypervisor";

/// calibrate_APIC_clock (arch/x86/kernel/apic/apic.c) waits for ten ticks of 10 ms.
pub const CALIBRATION: Duration = Duration::from_millis(100);

/// Names in a machine's directory: its second disk, its control socket.
const SCRATCH: &str = "scratch.ext4";
const SOCKET: &str = "qmp";

/// Starts QEMU stopped, lets it go, waits for the guest's first process.
pub fn start(setup: &Setup, cpus: u32) -> Result<Contender> {
    let (dir, image) = files(setup, cpus)?;
    Ok(boot(setup, cpus, dir.path(), &image)?.0)
}

/// The machine's directory, with what it finds in memory and its second disk.
fn files(setup: &Setup, cpus: u32) -> Result<(TempDir, Image)> {
    let dir = tempfile::tempdir_in(&setup.work)?;
    let image = peer_image::write(setup, cpus, dir.path())?;
    scratch_disk(&dir.path().join(SCRATCH))?;
    Ok((dir, image))
}

fn boot(setup: &Setup, cpus: u32, dir: &Path, image: &Image) -> Result<(Contender, Qmp)> {
    let mut this = Contender::spawn(Kind::Tcg, setup, machine(setup, cpus, dir, image).arg("-S"))?;
    let mut qmp = Qmp::connect(&dir.join(SOCKET), &mut this)?;
    let begun = Instant::now();
    qmp.execute("cont", "")?;
    let (at, _) = this.wait_for(is_up, BOOT_LIMIT)?;
    this.boot_ns = at.duration_since(begun).saturating_sub(CALIBRATION).as_nanos() as u64;
    Ok((this, qmp))
}

/// The machine's command line; its scratch disk and its control socket are in `dir`.
fn machine(setup: &Setup, cpus: u32, dir: &Path, image: &Image) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    let machine =
        "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,x-option-roms=off";
    command.args(["-M", machine, "-accel", "tcg,thread=multi", "-cpu", CPU]);
    command.args(["-m", &setup.memory.to_string(), "-smp", &cpus.to_string()]);
    command.arg("-bios").arg(&image.rom);
    for (file, address) in &image.parts {
        let part = format!("loader,file={},addr={address:#x},force-raw=on", file.display());
        command.arg("-device").arg(part);
    }
    command.args(["-global", "virtio-mmio.force-legacy=off"]);
    let scratch = dir.join(SCRATCH);
    let drives = [(&setup.root, "readonly=on"), (&scratch, "discard=unmap")];
    for (slot, (path, more)) in drives.into_iter().enumerate() {
        let drive = format!("if=none,id=d{slot},format=raw,file={},cache=unsafe,{more}", path.display());
        command.arg("-drive").arg(drive);
        command.args(["-device", &format!("virtio-blk-device,drive=d{slot},bus=virtio-mmio-bus.{slot}")]);
    }
    command.args(["-device", "virtio-rng-device,bus=virtio-mmio-bus.2"]);
    command.args(&setup.extra.qemu);
    command.args(["-chardev", "stdio,id=c,signal=off", "-serial", "chardev:c"]);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", dir.join(SOCKET).display()));
    command
}

/// A machine of QEMU's that waits for work, written to a file by its migration.
pub struct Saved {
    dir: TempDir,
    image: Image,
    cpus: u32,
}

/// How long writing or reading a machine may take.
const MIGRATION_LIMIT: Duration = Duration::from_secs(120);

impl Saved {
    /// Boots a machine and saves it.
    ///
    /// # Errors
    /// It does not come up, or cannot be written.
    pub fn new(setup: &Setup, cpus: u32) -> Result<Self> {
        let (dir, image) = files(setup, cpus)?;
        let (machine, mut qmp) = boot(setup, cpus, dir.path(), &image)?;
        machine.wait_for(|line| line == READY, BOOT_LIMIT).context("waiting until it serves")?;
        let this = Self { dir, image, cpus };
        // It stops by itself at the end of that. (One that was stopped before would come back stopped.)
        qmp.execute("migrate", &format!("{{\"uri\": \"exec:cat >{}\"}}", this.file().display()))?;
        let end = Instant::now() + MIGRATION_LIMIT;
        loop {
            let said = qmp.execute("query-migrate", "")?;
            if said.contains("\"completed\"") {
                break;
            }
            if said.contains("\"failed\"") || Instant::now() > end {
                bail!("QEMU did not write the machine: {said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        qmp.execute("quit", "")?;
        Ok(this)
    }

    /// What was written.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Resumes it in a new process and has its guest answer a line: how long after the start of the process QEMU says
    /// that its CPUs run, and how long after it the answer came.
    ///
    /// # Errors
    /// It does not come up.
    pub fn resume(&self, setup: &Setup) -> Result<(Duration, Duration)> {
        let (begun, clock) = (Instant::now(), SystemTime::now());
        let mut machine = self.bring(setup, self.dir.path())?;
        let mut qmp = Qmp::connect(&self.dir.path().join(SOCKET), &mut machine)?;
        let runs = qmp.runs_since()?.duration_since(clock).unwrap_or_default();
        let (at, _) = machine.wait_for(is_answer, MIGRATION_LIMIT)?;
        Ok((runs, at.duration_since(begun)))
    }

    /// One of several such machines at once, each of a `number` of its own, whose guest has answered a line. It stays
    /// until it is dropped.
    ///
    /// # Errors
    /// It does not come up; no room for its second disk.
    pub fn another(&self, setup: &Setup, number: usize) -> Result<Contender> {
        let dir = self.dir.path().join(number.to_string());
        std::fs::create_dir_all(&dir)?;
        let mut copy = Command::new("cp");
        crate::host::run(
            copy.arg("--sparse=always").arg(self.dir.path().join(SCRATCH)).arg(dir.join(SCRATCH)),
        )?;
        let machine = self.bring(setup, &dir)?;
        machine.wait_for(is_answer, MIGRATION_LIMIT)?;
        Ok(machine)
    }

    /// Starts a process that reads the machine, with its second disk and its socket in `dir`, and says a line to its
    /// guest.
    fn bring(&self, setup: &Setup, dir: &Path) -> Result<Contender> {
        let mut command = machine(setup, self.cpus, dir, &self.image);
        command.arg("-incoming").arg(format!("exec:cat {}", self.file().display()));
        let _ = std::fs::remove_file(dir.join(SOCKET));
        let mut machine = Contender::spawn(Kind::Tcg, setup, &mut command)?;
        // It waits in the pipe, and then in the guest's serial port. (The guest knows no such function and says so.)
        machine.say(&format!("{CALL} nothing\n"))?;
        Ok(machine)
    }
}

/// An empty ext4, as the soft machine's.
fn scratch_disk(path: &Path) -> Result<()> {
    let blank = SparseDisk::new(assets::blank_ext4_list()).context("the blank disk")?;
    let file = std::fs::File::create(path)?;
    file.set_len(blank.size())?;
    for (offset, block) in blank.stored() {
        file.write_all_at(block, offset)?;
    }
    Ok(())
}
