//! A machine on the soft engine. It is a process of its own (this program again), so that a crash of
//! the engine is a failed row and its CPU time can be told.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, stdin};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use std::{env, io};

use anyhow::{Context, Result, ensure};
use disk::{Disk, FileDisk, Overlay, SparseDisk, private_file};
use engine_guest::protocol::{PORT, VSOCK_WORD};
use machine::{EngineChoice, Machine, MachineConfig};

use super::{BOOT_LIMIT, Contender, Kind, is_up};
use crate::options::SoftChild;
use crate::setup::Setup;

/// Starts the child and waits for its guest's first process.
pub fn start(setup: &Setup, cpus: u32) -> Result<Contender> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("__soft").arg("--root").arg(&setup.root).arg("--initramfs").arg(&setup.initramfs);
    command.arg("--kernel").arg(&setup.kernel).arg("--words").arg(VSOCK_WORD);
    command.args(["--memory", &setup.memory.to_string(), "--cpus", &cpus.to_string()]);
    if setup.extra.network {
        command.arg("--network");
    }
    if let Some(folder) = &setup.extra.folder {
        command.arg("--folder").arg(folder);
    }
    let mut this = Contender::spawn(Kind::Soft, setup, &mut command)?;
    let (_, line) = this.wait_for(|line| line.starts_with("up "), BOOT_LIMIT)?;
    this.boot_ns = line["up ".len()..].parse()?;
    Ok(this)
}

/// The child: boots, tells how long that took, then passes requests to the guest and answers back.
/// `!count` is for itself.
pub fn child(part: &SoftChild) -> Result<()> {
    let (send, console) = channel();
    let machine = boot(part, send)?;
    let begun = Instant::now();
    machine.resume();
    let mut text = String::new();
    let up = loop {
        let left = BOOT_LIMIT.saturating_sub(begun.elapsed());
        let (at, bytes): (Instant, Vec<u8>) =
            console.recv_timeout(left).with_context(|| format!("the guest did not come up: {text}"))?;
        text.push_str(&String::from_utf8_lossy(&bytes));
        if text.lines().any(|line| is_up(line.trim())) {
            break at.duration_since(begun);
        }
    };
    let mut out = io::stdout().lock();
    writeln!(out, "up {}", up.as_nanos())?;
    out.flush()?;
    std::thread::spawn(move || {
        console.iter().for_each(|(_, bytes)| eprint!("{}", String::from_utf8_lossy(&bytes)))
    });
    let mut to = connect(&machine)?;
    let mut from = BufReader::new(to.try_clone()?);
    let mut pass = |from: &mut dyn BufRead| -> Result<()> {
        let mut line = String::new();
        ensure!(from.read_line(&mut line)? > 0, "the guest hung up");
        out.write_all(line.as_bytes())?;
        Ok(out.flush()?)
    };
    pass(&mut from)?;
    for line in stdin().lock().lines() {
        let line = line?;
        if line == "!count" {
            let mut count = io::Cursor::new(format!("count {}\n", count(&machine)));
            pass(&mut count)?;
        } else {
            writeln!(to, "{line}")?;
            pass(&mut from)?;
        }
    }
    Ok(())
}

fn boot(part: &SoftChild, console: Sender<(Instant, Vec<u8>)>) -> Result<Machine> {
    let open = |path| File::open(path).with_context(|| format!("cannot open {path:?}"));
    let root = open(&part.root)?;
    let size = root.metadata()?.len();
    let blank: Arc<dyn Disk> =
        Arc::new(SparseDisk::new(assets::blank_ext4_list()).context("the blank disk")?);
    let private = private_file(&env::temp_dir()).context("a file for the writable disk")?;
    let scratch = Arc::new(Overlay::new(blank, private).context("the writable disk")?);
    let root = Arc::new(FileDisk::section(Arc::new(root), 0, size)?);
    let mut config = MachineConfig::new(EngineChoice::Soft, part.cpus, part.memory << 20, root, scratch);
    if part.network {
        let opened = vec!["127.0.0.1".parse().map_err(anyhow::Error::msg)?];
        let policy = netstack::Policy::new(Vec::new(), Vec::new(), opened);
        config.net = Some(netstack::Config { policy, ..Default::default() });
    }
    if let Some(folder) = &part.folder {
        let opened = machine::Folder::open(folder, "/folder", false);
        config.folders.push(opened.with_context(|| format!("cannot share {}", folder.display()))?);
    }
    let line = format!("{} {}", machine::COMMAND_LINE, part.words);
    let sink = Box::new(move |bytes: &[u8]| drop(console.send((Instant::now(), bytes.to_vec()))));
    let (kernel, initramfs) = (fs::read(&part.kernel)?, fs::read(&part.initramfs)?);
    Ok(Machine::boot(config, &kernel, &initramfs, line.trim(), sink)?)
}

/// The guest listens some time after its first line.
fn connect(machine: &Machine) -> Result<std::os::unix::net::UnixStream> {
    let begun = Instant::now();
    loop {
        match machine.connect(PORT) {
            Ok(stream) => return Ok(stream),
            Err(e) if begun.elapsed() > BOOT_LIMIT => return Err(e).context("the guest does not listen"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Counters are exact while nothing runs. All of them go into the contender's log.
fn count(machine: &Machine) -> u64 {
    if machine.pause().is_err() {
        return 0;
    }
    let count = machine.instructions().unwrap_or(0);
    if let Ok(figures) = machine.engine_figures() {
        eprintln!("{figures:?}");
    }
    machine.resume();
    count
}
