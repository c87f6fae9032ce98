//! The answering side: a thread that waits in accept and one short-lived thread a request.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Answer, LINE_MAX, Request, passing};
use crate::error::{Error, io_error};
use crate::record::Instance;

/// What a VMM does with requests.
pub trait Handler: Send + Sync + 'static {
    /// Does it; the second value is a stream to pass on.
    ///
    /// # Errors
    /// Whatever failed: its text goes to who asked.
    fn handle(
        &self,
        request: Request,
        asker: &Asker<'_>,
    ) -> Result<(serde_json::Value, Option<UnixStream>), Error>;

    /// Called after the answer was sent (a VMM that froze ends here).
    fn answered(&self, request: &Request);
}

/// Who asked.
pub struct Asker<'a>(&'a UnixStream);

impl Asker<'_> {
    /// Whether they hung up: nobody waits for the answer any more.
    pub fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(self.0, PollFlags::RDHUP | PollFlags::HUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0)
    }
}

/// A socket that is served; removed on drop.
pub struct Server {
    path: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket that listens and is not served yet: who connects waits.
pub struct Listening {
    listener: UnixListener,
    server: Server,
}

/// Makes an instance's control socket. The caller holds the instance's lock, so a socket file that is there is a
/// dead VMM's.
///
/// # Errors
/// The host's.
pub fn listen(instance: &Instance) -> Result<Listening, Error> {
    let path = instance.socket();
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(io_error("listen on", &path))?;
    Ok(Listening { listener, server: Server { path } })
}

impl Listening {
    /// Serves it until the process ends.
    ///
    /// # Errors
    /// The host's.
    pub fn serve(self, handler: Arc<dyn Handler>) -> Result<Server, Error> {
        let listener = self.listener;
        let accept = move || {
            for stream in listener.incoming().flatten() {
                let handler = handler.clone();
                let _ = thread::Builder::new()
                    .name("control".into())
                    .spawn(move || answer(&stream, handler.as_ref()));
            }
        };
        let thread = thread::Builder::new().name("control-accept".into()).stack_size(64 * 1024).spawn(accept);
        thread.map_err(io_error("serve", &self.server.path))?;
        Ok(self.server)
    }
}

/// Only this user and root may ask: the directory is 0700, this is the second lock on the door.
fn is_ours(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream).map(|c| c.uid);
    peer.is_ok_and(|uid| uid.is_root() || uid == rustix::process::geteuid())
}

fn answer(stream: &UnixStream, handler: &dyn Handler) {
    if !is_ours(stream) {
        return;
    }
    let Ok(request) = read_request(stream) else { return };
    let (answer, passed) = match handler.handle(request.clone(), &Asker(stream)) {
        Ok((report, passed)) => (Answer::Done { report }, passed),
        Err(e) => (Answer::Failed { text: e.to_string() }, None),
    };
    let succeeded = matches!(answer, Answer::Done { .. });
    let _ = send_answer(stream, &answer, passed.as_ref());
    if succeeded {
        handler.answered(&request);
    }
}

fn read_request(stream: &UnixStream) -> io::Result<Request> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    serde_json::from_slice(&line).map_err(io::Error::other)
}

fn send_answer(mut stream: &UnixStream, answer: &Answer, passed: Option<&UnixStream>) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    match passed {
        Some(fd) => passing::send(stream, &line, fd.as_fd()),
        None => stream.write_all(&line),
    }
}
