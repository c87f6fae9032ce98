//! `shell --rescue`: a toolbox beside the processes of a guest that has no tools of its own.
//!
//! Problem: a stripped guest has no shell, and nothing may be written to its disk to look into it. Strategy: the
//! toolbox (our busybox, and what the user adds) goes into a directory in the guest's /run, which is memory. A shell
//! runs in it in a mount namespace of its own, where the guest's root is at /guest and its /proc, /sys and /dev are in
//! place; when it ends, the directory is removed. Invariants: the guest's disk and its other processes' view of the
//! file system stay as they are.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use agent_protocol::ExecSpec;
use anyhow::{Context, Result};
use instance::session::{self, Target};

use crate::args::{Process, Shell};
use crate::cmd::cp::{pack, put};
use crate::cmd::exec::{agent, carry};
use crate::launch::Home;
use crate::resolve;

/// Of a tar's entries.
const DIRECTORY: u32 = 0o755;
/// Where our part of the toolbox is in it: away from whatever the user's has.
const OURS: &str = ".smolvm";

/// Runs in the guest, outside the toolbox: `$1` is its directory, the rest the command for it.
const ENTER: &str = r#"
box=$1; shift; b=$box/.smolvm/busybox
$b mkdir -p $box/proc $box/sys $box/dev $box/guest $box/tmp $box/.smolvm/bin
$b mount -o rbind / $box/guest && $b mount -o rbind /proc $box/proc || exit 125
$b mount -o rbind /sys $box/sys; $b mount -o rbind /dev $box/dev
exec $b chroot $box /.smolvm/busybox sh -c '
/.smolvm/busybox --install -s /.smolvm/bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/.smolvm/bin
cd /guest
[ $# -gt 0 ] || set -- sh -l
exec "$@"' sh "$@"
"#;

pub fn rescue(shell: &Shell, home: &Home) -> Result<u8> {
    let name = &shell.name;
    let toolbox = format!("smolvm-rescue-{}", std::process::id());
    let place = format!("/run/{toolbox}");
    put(agent(name, home)?, "/run".into(), Some((0, 0)), |sink| ours(&toolbox, sink))?;
    let code = enter(shell, &place, home);
    let busybox = format!("{place}/{OURS}/busybox");
    // A machine that ended meanwhile took it along.
    if let Ok(stream) = agent(name, home) {
        let argv = [&busybox, "rm", "-rf", &place].map(str::to_owned);
        let _ = session::attach(stream, &Target::Exec(ExecSpec { argv: argv.into(), ..ExecSpec::default() }));
    }
    code
}

/// A tar with busybox in it.
fn ours(toolbox: &str, sink: &mut dyn Write) -> Result<()> {
    let busybox = assets::busybox();
    let mut archive = tar::Builder::new(sink);
    let mut entry = |path: String, kind: tar::EntryType, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(DIRECTORY);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes)
    };
    let packed = entry(format!("{toolbox}/"), tar::EntryType::Directory, &[])
        .and_then(|()| entry(format!("{toolbox}/{OURS}/"), tar::EntryType::Directory, &[]))
        .and_then(|()| entry(format!("{toolbox}/{OURS}/busybox"), tar::EntryType::Regular, &busybox))
        .and_then(|()| archive.finish());
    packed.context("packing the toolbox")
}

/// The user's: a directory's contents belong to root, a tar has its own owners.
fn theirs(tools: &Path, sink: &mut dyn Write) -> Result<()> {
    if tools.is_dir() {
        return pack(&tools.join("."), None, false, sink);
    }
    let mut file = File::open(tools).with_context(|| format!("opening {}", tools.display()))?;
    io::copy(&mut file, sink).map(drop).with_context(|| format!("sending {}", tools.display()))
}

fn enter(shell: &Shell, place: &str, home: &Home) -> Result<u8> {
    if let Some(tools) = &shell.tools {
        let owner = tools.is_dir().then_some((0, 0));
        let sent = put(agent(&shell.name, home)?, place.to_owned(), owner, |sink| theirs(tools, sink));
        sent.with_context(|| format!("bringing the tools of {} into the machine's memory", tools.display()))?;
    }
    let tty = io::stdin().is_terminal() && io::stdout().is_terminal();
    let process = Process { user: shell.user.clone(), tty, interactive: true, ..Process::default() };
    let busybox = format!("{place}/{OURS}/busybox");
    let outer =
        [&busybox, "unshare", "-m", "--propagation", "private", &busybox, "sh", "-c", ENTER, "sh", place];
    let command = shell.command.strip_prefix(&["--".to_owned()]).unwrap_or(&shell.command);
    let argv: Vec<String> =
        outer.iter().map(|word| (*word).to_owned()).chain(command.iter().cloned()).collect();
    let mut spec = resolve::exec(&process, &argv)?.spec(&crate::launch::Defaults::default());
    spec.tty = tty.then(Target::window);
    spec.stdin = true;
    carry(&shell.name, agent(&shell.name, home)?, &Target::Exec(spec), home)
}
