//! QEMU's TCG: its leanest machine (`microvm`), our kernel entered as our own loader enters it.
//!
//! What QEMU 7.2's TCG lacks of the portable CPU cannot be given to it: kvmclock (it takes the TSC, at
//! the frequency told by `tsc_early_khz=`), x2APIC, and the TSC-deadline timer, for want of which the
//! kernel calibrates the APIC timer for a tenth of a second of spinning ([`CALIBRATION`]), which is
//! taken off its boot.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use disk::{Disk, SparseDisk};

use super::{BOOT_LIMIT, Contender, Kind, is_up, peer_image};
use crate::setup::Setup;

/// x86-64-v2 and little else, as `arch::x86_64::cpuid::portable` has it.
pub const CPU: &str = "qemu64,vendor=GenuineIntel,family=6,model=28,stepping=10,-svm,-vme,-sep,-mce,-mca,-mtrr,\
     +ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+lahf-lm,+rdrand,+rdtscp,+nx,+arat,-x2apic,-tsc-deadline,-kvm,+hypervisor";

/// calibrate_APIC_clock (arch/x86/kernel/apic/apic.c) waits for ten ticks of 10 ms.
pub const CALIBRATION: Duration = Duration::from_millis(100);

/// Starts QEMU stopped, lets it go, waits for the guest's first process.
pub fn start(setup: &Setup, cpus: u32) -> Result<Contender> {
    let dir = tempfile::tempdir_in(&setup.work)?;
    let image = peer_image::write(setup, cpus, dir.path())?;
    let scratch = dir.path().join("scratch.ext4");
    scratch_disk(&scratch)?;
    let socket = dir.path().join("qmp");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]);
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
    let drives = [(&setup.root, "readonly=on"), (&scratch, "discard=unmap")];
    for (slot, (path, more)) in drives.into_iter().enumerate() {
        let drive = format!("if=none,id=d{slot},format=raw,file={},cache=unsafe,{more}", path.display());
        command.arg("-drive").arg(drive);
        command.args(["-device", &format!("virtio-blk-device,drive=d{slot},bus=virtio-mmio-bus.{slot}")]);
    }
    command.args(["-device", "virtio-rng-device,bus=virtio-mmio-bus.2"]);
    command.args(&setup.extra.qemu);
    command.args(["-chardev", "stdio,id=c,signal=off", "-serial", "chardev:c"]);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    let mut this = Contender::spawn(Kind::Tcg, setup, &mut command)?;
    let begun = go(&socket, &mut this)?;
    let (at, _) = this.wait_for(is_up, BOOT_LIMIT)?;
    this.boot_ns = at.duration_since(begun).saturating_sub(CALIBRATION).as_nanos() as u64;
    Ok(this)
}

/// An empty ext4, as the soft machine's.
fn scratch_disk(path: &std::path::Path) -> Result<()> {
    let blank = SparseDisk::new(assets::blank_ext4_list()).context("the blank disk")?;
    let file = std::fs::File::create(path)?;
    file.set_len(blank.size())?;
    for (offset, block) in blank.stored() {
        file.write_all_at(block, offset)?;
    }
    Ok(())
}

/// Says `cont` on the QMP socket; when that was.
fn go(socket: &std::path::Path, qemu: &mut Contender) -> Result<Instant> {
    let begun = Instant::now();
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(_) if begun.elapsed() < Duration::from_secs(20) && qemu.child.try_wait()?.is_none() => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => {
                let said = std::fs::read_to_string(&qemu.log).unwrap_or_default();
                return Err(e).with_context(|| format!("QEMU's control socket; it said: {said}"));
            }
        }
    };
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    let greeting = lines.next().context("QEMU said nothing")??;
    if !greeting.contains("QMP") {
        bail!("QEMU greeted with {greeting}");
    }
    // Between an order and its answer may come events, of a network that is connected for one.
    let mut answer = || -> Result<()> {
        while !lines.next().context("QEMU hung up")??.contains("\"return\"") {}
        Ok(())
    };
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    answer()?;
    let now = Instant::now();
    stream.write_all(b"{\"execute\":\"cont\"}\n")?;
    // Hanging up before the answer would take the command back.
    answer()?;
    Ok(now)
}
