//! The service's kept output.

use std::os::unix::net::UnixStream;

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
