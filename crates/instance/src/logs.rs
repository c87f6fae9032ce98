//! The service's kept output: of a machine that runs its guest's, of one that was stopped what it had then.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};

use agent_protocol::frame::read_frame;
use agent_protocol::{Client, ClientError, FrameKind, LogRecord, LogsSpec, Request};

use crate::error::Error;
use crate::vmm::Vmm;

/// Reads records over a fresh connection to the agent, until the end or until `each` says stop
/// (`false`).
///
/// # Errors
/// The agent's.
pub fn read(
    stream: UnixStream,
    spec: LogsSpec,
    mut each: impl FnMut(LogRecord) -> bool,
) -> Result<(), Error> {
    let mut client = Client::new(stream);
    client.start(&Request::Logs(spec))?;
    loop {
        let frame = client.next_frame()?;
        match frame.kind {
            FrameKind::Log => {
                if !each(LogRecord::decode(&frame.payload).map_err(ClientError::from)?) {
                    return Ok(());
                }
            }
            FrameKind::DataEnd => return Ok(()),
            other => return Err(ClientError::Unexpected(other).into()),
        }
    }
}

/// The file beside a stopped machine's disk that holds its service's output, as frames of the agent's.
pub const SAVED: &str = "output.log";
/// Most bytes of it: twice what a guest keeps if nothing else is asked for, since it may say much while it ends.
const MOST: usize = 8 << 20;

/// Follows the output into a file until the guest is gone.
pub(crate) struct Saving {
    stream: UnixStream,
    reader: JoinHandle<()>,
}

impl Saving {
    /// Begins, from the oldest that the guest keeps. `None`: the guest does not answer, or the host has no room.
    pub(crate) fn begin(vmm: &Vmm, path: &Path) -> Option<Self> {
        // Without waiting: a guest that hangs is ended all the same, and is not to take longer for this.
        let stream = vmm.begin_connect().ok()?;
        let (from, mut to) = (stream.try_clone().ok()?, BufWriter::new(File::create(path).ok()?));
        let mut room = MOST;
        let body = move || {
            let all = LogsSpec { follow: true, tail: None, since_ns: None };
            // The connection breaks when the machine is off; what came until then is whole records.
            let _ = read(from, all, |record| {
                let frame = LogRecord::encode(record.time_ns, record.stream, &record.bytes);
                room = room.saturating_sub(frame.len());
                room > 0 && to.write_all(&frame).is_ok()
            });
            let _ = to.flush();
        };
        let reader = thread::Builder::new().name("logs".into()).stack_size(128 * 1024).spawn(body).ok()?;
        Some(Self { stream, reader })
    }

    /// The machine is off.
    pub(crate) fn finish(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        let _ = self.reader.join();
    }
}

/// Reads what a stopped machine left in `path`, as [`read`] does.
///
/// # Errors
/// The file's; [`io::ErrorKind::NotFound`] when there is none.
pub fn read_saved(path: &Path, spec: LogsSpec, mut each: impl FnMut(LogRecord) -> bool) -> io::Result<()> {
    let meant = |record: &LogRecord| spec.since_ns.is_none_or(|since| record.time_ns >= since);
    let records = |each: &mut dyn FnMut(LogRecord) -> bool| -> io::Result<()> {
        let mut file = BufReader::new(File::open(path)?);
        while let Some(frame) = read_frame(&mut file)? {
            if frame.kind != FrameKind::Log {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no log"));
            }
            let record = LogRecord::decode(&frame.payload).map_err(io::Error::other)?;
            if meant(&record) && !each(record) {
                break;
            }
        }
        Ok(())
    };
    let mut count = 0u64;
    records(&mut |_| {
        count += 1;
        true
    })?;
    let mut skip = spec.tail.map_or(0, |tail| count.saturating_sub(tail));
    records(&mut |record| match skip {
        0 => each(record),
        _ => {
            skip -= 1;
            true
        }
    })
}

/// The last lines of the service's output as text.
///
/// # Errors
/// The agent's.
pub fn tail(vmm: &Vmm, lines: u64) -> Result<String, Error> {
    let mut text = Vec::new();
    let spec = LogsSpec { follow: false, tail: Some(lines), since_ns: None };
    read(vmm.connect()?, spec, |record| {
        text.extend_from_slice(&record.bytes);
        true
    })?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
