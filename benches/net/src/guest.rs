//! The same stream in guests: a machine of ours on the soft engine, QEMU's with libslirp, and QEMU's with passt; one
//! kernel, one root (the smallest: busybox), one program that sends and receives. The guest's processor is the limit
//! of both, and QEMU's is another one (TCG): the ratio is what a user sees of both together.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use engine::contender::{Contender, Kind, Sample};
use engine::document::Part;
use engine::host;
use engine::setup::{self, Extra};

use crate::options::Guest;
use crate::relay::{Peers, Relay};
use crate::report::{median, spread};
use crate::server::Server;

const PART: Part = Part {
    begin: "<!-- net guest: written by `cargo run --release -p net -- guest --write` -->",
    end: "<!-- net guest: end -->",
};
/// Round trips of one byte in a turn.
const TRIPS: u64 = 2000;

/// One machine and what it did.
struct Machine {
    name: &'static str,
    contender: Contender,
    /// By the order of the rows.
    samples: [Vec<Sample>; 3],
}

/// Runs everything and tells.
///
/// # Errors
/// A machine that does not come up or does not do its work.
pub fn run(options: &Guest) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let peers = Peers::find(dir.path())?;
    let server = Server::start()?;
    let load = host::load();
    let (mut machines, _passt) = start(options, &peers, dir.path())?;
    let bytes = options.mib << 20;
    server.set_bytes(bytes);
    let calls = [
        format!("send {} {bytes}", server.sink),
        format!("receive {} {bytes}", server.source),
        format!("trips {} {TRIPS}", server.echo),
    ];
    // The first turn warms everything up.
    for turn in 0..=options.runs {
        for (row, call) in calls.iter().enumerate() {
            for machine in &mut machines {
                let sample = machine.contender.call(call).with_context(|| machine.name)?;
                let expected = if row == 2 { TRIPS } else { bytes };
                ensure!(sample.check == expected, "{}: {call} did {}", machine.name, sample.check);
                if turn > 0 {
                    machine.samples[row].push(sample);
                }
            }
        }
    }
    tell(options, &peers.versions, &load, &machines)
}

fn start(options: &Guest, peers: &Peers, dir: &Path) -> Result<(Vec<Machine>, Relay)> {
    let mut setup = setup::setup_program(&options.place)?;
    let source = host::checkout().join("benches/net/root");
    let kept = setup.work.join("net-root");
    std::fs::create_dir_all(&kept)?;
    setup.root = setup::root(&kept, &setup.smolvm, &source)?;
    setup.memory = 512;
    let socket = dir.join("guest-passt.sock");
    let passt = Relay::spawn_passt(peers, &socket)?;
    let device = ["-device".to_owned(), "virtio-net-device,netdev=n,bus=virtio-mmio-bus.3".to_owned()];
    let qemu = |netdev: String| {
        let words = ["-netdev".to_owned(), netdev].into_iter().chain(device.clone());
        Extra { qemu: words.collect(), ..Extra::default() }
    };
    let stream = format!("stream,id=n,server=off,addr.type=unix,addr.path={}", socket.display());
    let kinds = [
        ("ours (soft)", Kind::Soft, Extra { network: true, ..Extra::default() }),
        ("libslirp (TCG)", Kind::Tcg, qemu("user,id=n".to_owned())),
        ("passt (TCG)", Kind::Tcg, qemu(stream)),
    ];
    let mut machines = Vec::new();
    for (at, (name, kind, extra)) in kinds.into_iter().enumerate() {
        setup.extra = extra;
        setup.work = dir.join(at.to_string());
        std::fs::create_dir_all(&setup.work)?;
        let mut contender = Contender::start(kind, &setup, 1).with_context(|| name)?;
        contender.call("network").with_context(|| name)?;
        machines.push(Machine { name, contender, samples: Default::default() });
    }
    Ok((machines, passt))
}

/// Processor time of a machine's process in each turn, in s.
fn cpu_seconds(machine: &Machine, row: usize) -> impl Iterator<Item = f64> {
    machine.samples[row].iter().map(|sample| sample.cpu_ns as f64 / 1e9)
}

fn tell(options: &Guest, versions: &str, load: &str, machines: &[Machine]) -> Result<()> {
    let mut text = String::new();
    writeln!(text, "## The same in guests\n")?;
    writeln!(
        text,
        "{}, {}, {versions}; load average {load} before, {} after. {} interleaved runs, medians, by the guest's clock; \
         {} MiB a stream, {TRIPS} round trips; same kernel, root and program. CPU: of the machine's process, passt's own \
         is apart. The guest's processor is the limit, and QEMU's is TCG. `cargo run --release -p net -- guest`\n",
        host::today(),
        host::machine(),
        host::load(),
        options.runs,
        options.mib,
    )?;
    writeln!(
        text,
        "| machine | row | figure | CPU | its time / ours | its CPU / ours |\n|---|---|---|---|---|---|"
    )?;
    let rows = ["guest → host", "host → guest", "round trip"];
    for (row, name) in rows.into_iter().enumerate() {
        let times = |m: &Machine| -> Vec<f64> { m.samples[row].iter().map(|s| s.ns as f64).collect() };
        let ours = machines.first().map(times).unwrap_or_default();
        for machine in machines {
            let times = times(machine);
            let middle = median(times.iter().copied());
            let figure = match row {
                2 => format!("{:.0} µs", middle / 1e3 / TRIPS as f64),
                _ => format!("{:.0} MB/s", (options.mib << 20) as f64 / middle * 1e3),
            };
            let cpu = median(cpu_seconds(machine, row));
            let ratios: Vec<f64> = ours.iter().zip(&times).map(|(ours, it)| it / ours).collect();
            writeln!(
                text,
                "| {} | {name} | {figure} | {cpu:.2} s | **{}** |",
                machine.name,
                spread(&ratios)
            )?;
        }
    }
    writeln!(text)?;
    print!("{text}");
    if options.write {
        PART.write(&host::checkout().join("docs/performance.md"), &text)?;
    }
    Ok(())
}
