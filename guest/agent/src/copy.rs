//! Copies between host and guest, each in a forked copy of the agent: `Stat`, `CopyOut`, `CopyIn`, `ExportUpper`.

use crate::tar::write::Writer;
use crate::unpack::unpack;
use crate::walk::{Walk, What, describe, find};
use crate::worker::Channel;
use crate::world::World;
use agent_protocol::frame::{self, FrameKind};
use agent_protocol::{ErrorKind, Failure, MAX_DATA, Reply};
use rustix::io::Errno;
use std::io::{self, Read, Write};

/// Stream data to the host, gathered into frames of full size.
struct DataWriter<'a> {
    channel: &'a mut Channel,
    gathered: Vec<u8>,
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gathered.len() + bytes.len() > MAX_DATA {
            self.flush()?;
        }
        if bytes.len() >= MAX_DATA {
            self.channel.data(bytes);
        } else {
            self.gathered.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.channel.data(&self.gathered);
        self.gathered.clear();
        Ok(())
    }
}

/// Stream data from the host, to its `DataEnd`.
struct DataReader<'a> {
    channel: &'a mut Channel,
    held: Vec<u8>,
    at: usize,
    ended: bool,
}

impl DataReader<'_> {
    /// Reads on to the end, so that a host that is still sending comes to read what we say.
    fn drain(&mut self) {
        while !self.ended {
            match self.channel.next_frame().map(|frame| frame.kind) {
                Some(FrameKind::Data) => {}
                _ => self.ended = true,
            }
        }
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.held.len() && !self.ended {
            let frame = self.channel.next_frame().ok_or(io::ErrorKind::UnexpectedEof)?;
            match frame.kind {
                FrameKind::Data => (self.held, self.at) = (frame.payload, 0),
                FrameKind::DataEnd => self.ended = true,
                other => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a {other:?} frame in a copy"),
                    ));
                }
            }
        }
        let rest = self.held.get(self.at..).unwrap_or_default();
        let size = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..size), rest.get(..size)) {
            to.copy_from_slice(from);
        }
        self.at += size;
        Ok(size)
    }
}

/// The failure of a path operation.
pub fn path_failure(what: &str, path: &str, error: &io::Error) -> Failure {
    let kind = match Errno::from_io_error(error) {
        Some(Errno::NOENT | Errno::NOTDIR) => ErrorKind::NotFound,
        _ => ErrorKind::Other,
    };
    Failure::new(kind, format!("{what} {path} in the guest: {error}"))
}

/// Serves `Stat`.
pub fn stat(world: &World, channel: &mut Channel, path: &str, follow: bool) {
    match find(world, path, follow).and_then(|place| describe(&place)) {
        Ok(stat) => channel.reply(&Reply::Stat(stat)),
        Err(error) => channel.fail(&path_failure("looking at", path, &error)),
    }
}

/// Serves `CopyOut`.
pub fn copy_out(world: &World, channel: &mut Channel, path: &str, follow: bool) {
    let place = match find(world, path, follow) {
        Ok(place) => place,
        Err(error) => return channel.fail(&path_failure("looking at", path, &error)),
    };
    match describe(&place) {
        Ok(stat) => channel.reply(&Reply::Stat(stat)),
        Err(error) => return channel.fail(&path_failure("looking at", path, &error)),
    }
    send_archive(channel, path, |writer| {
        let mut walk = Walk::new(world, writer, What::Plain);
        let name = if place.name.is_empty() { b".".to_vec() } else { place.archive_name() };
        walk.add(&place.parent, place.own_name(), &name)
    });
}

/// Serves `ExportUpper`.
pub fn export_upper(world: &World, channel: &mut Channel) {
    let Some(upper) = &world.upper else {
        let text = "this machine's root is no overlay, so there is no upper directory to export";
        return channel.fail(&Failure::new(ErrorKind::Unsupported, text));
    };
    send_archive(channel, "the overlay's upper directory", |writer| {
        Walk::new(world, writer, What::Upper).add(upper, c".", b".")
    });
}

fn send_archive(
    channel: &mut Channel,
    what: &str,
    fill: impl FnOnce(&mut Writer<DataWriter<'_>>) -> io::Result<()>,
) {
    let mut writer = Writer::new(DataWriter { channel, gathered: Vec::with_capacity(MAX_DATA) });
    let result = fill(&mut writer).and_then(|()| writer.finish().map(drop));
    match result {
        Ok(()) => channel.send(&frame::header(FrameKind::DataEnd, 0)),
        Err(error) => channel.fail(&path_failure("reading", what, &error)),
    }
}

/// Serves `CopyIn`.
pub fn copy_in(world: &World, channel: &mut Channel, path: &str, owner: Option<(u32, u32)>) {
    let mut reader = DataReader { channel, held: Vec::new(), at: 0, ended: false };
    let result = unpack(world, &mut reader, path, owner);
    reader.drain();
    match result {
        Ok(()) => channel.reply(&Reply::Done),
        Err(failure) => channel.fail(&failure),
    }
}
