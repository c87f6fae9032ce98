//! Work inside the machine: maintainer scripts, steps, the way back of what they changed.

use std::path::Path;

use agent_protocol::{Client, ClientError, ExecSpec, Exit, FrameKind, Request};
use artifact::MachineFileWriter;
use instance::{DataStream, Vmm};

use crate::error::Error;
use crate::progress::{Progress, Silent};

/// Output kept of a command that says nothing on the way.
const TAIL: usize = 8 * 1024;

/// Runs a shell script or line as root; its output goes to `progress`. Returns its exit code and
/// the last of its output.
pub(crate) fn shell(
    vmm: &Vmm,
    script: &str,
    stdin: bool,
    progress: &dyn Progress,
) -> Result<(u8, String), Error> {
    let argv = if stdin {
        vec!["/bin/sh".to_owned(), "-s".to_owned()]
    } else {
        vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()]
    };
    let mut client = Client::new(vmm.connect()?);
    client.start(&Request::Exec(ExecSpec { argv, stdin, ..ExecSpec::default() }))?;
    client.started()?;
    if stdin {
        client.send_data(FrameKind::Stdin, script.as_bytes())?;
        client.send_mark(FrameKind::StdinEof)?;
    }
    let mut tail = Vec::new();
    loop {
        let frame = client.next_frame()?;
        match frame.kind {
            FrameKind::Stdout | FrameKind::Stderr => {
                progress.output(&frame.payload);
                tail.extend_from_slice(&frame.payload);
                let over = tail.len().saturating_sub(TAIL);
                tail.drain(..over);
            }
            FrameKind::Exit => {
                let exit: Exit = frame.decode().map_err(ClientError::from)?;
                return Ok((exit.code(), String::from_utf8_lossy(&tail).into_owned()));
            }
            other => return Err(ClientError::Unexpected(other).into()),
        }
    }
}

/// Runs a command that does nothing, so that what every command needs (the shell, the loader, the agent's way of
/// starting a process) is in the guest's memory when it is frozen, and not read from the disk after each resume:
/// that was the better half of the time of a first command. Twice, since the kernel sorts pages anew when they are
/// used a second time. A root without a shell has nothing to warm up.
pub(crate) fn warm_up(vmm: &Vmm) -> Result<(), Error> {
    for _ in 0..2 {
        Client::new(vmm.connect()?).run_through(&["/bin/sh", "-c", "exec true"])?;
    }
    Ok(())
}

/// Configures unpacked packages.
pub(crate) fn configure(vmm: &Vmm, script: &str, progress: &dyn Progress) -> Result<(), Error> {
    match shell(vmm, script, true, progress)? {
        (0, _) => Ok(()),
        (code, tail) => Err(Error::Configure { code, tail }),
    }
}

/// Runs one build step, counted from 1. What is told of its failure needs the definition's line.
pub(crate) fn step(
    vmm: &Vmm,
    number: usize,
    line: &str,
    progress: &dyn Progress,
) -> Result<Option<String>, Error> {
    Ok(match shell(vmm, line, false, progress)? {
        (0, _) => None,
        (code, tail) => {
            Some(format!("step {number} (`{line}`) ended with exit code {code}; its last output:\n{tail}"))
        }
    })
}

/// Ends whatever a step left running, so that the next one finds the disk and nothing else.
pub(crate) fn end_leftovers(vmm: &Vmm) -> Result<(), Error> {
    // kill(2): -1 is every process but the first one (the agent) and the caller.
    shell(vmm, "kill -KILL -1", false, &Silent).map(drop)
}

/// Writes the machine's disk as it is now; `dir` is for what must be kept meanwhile.
pub(crate) fn save_disk(vmm: &Vmm, writer: &mut MachineFileWriter, dir: &Path) -> Result<(), Error> {
    sync(vmm)?;
    vmm.machine().pause().map_err(instance::Error::from)?;
    let saved = vmm.machine().save_disk(writer, dir).map_err(instance::Error::from);
    vmm.machine().resume();
    Ok(saved.map(drop)?)
}

fn sync(vmm: &Vmm) -> Result<(), Error> {
    let mut client = Client::new(vmm.connect()?);
    client.start(&Request::Sync)?;
    client.reply()?;
    Ok(())
}

/// What the machine changed of its root, as a tar.
pub(crate) fn export(vmm: &Vmm) -> Result<DataStream, Error> {
    sync(vmm)?;
    Ok(DataStream::upper(vmm.connect()?)?)
}
