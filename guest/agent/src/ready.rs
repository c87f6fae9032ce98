//! Readiness: the waiting happens here, in the guest, so that the host asks once.
//!
//! Log patterns are matched by the loop as lines come in; everything else is tried again and again by a forked copy.

use crate::agent::{Agent, Deadline, now_ms};
use crate::command;
use crate::conn::Role;
use crate::worker::Channel;
use crate::world::World;
use agent_protocol::{ErrorKind, Exit, Failure, Probe, ReadySpec, Reply, SERVICE_SESSION};
use regex_lite::Regex;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Between two tries when nothing else was said.
const INTERVAL_MS: u64 = 50;
/// The longest the first try may take.
const TRY_MS: u64 = 5000;
/// The longest piece of a line that a pattern is looked for in, in bytes.
const LONGEST_LINE: usize = 64 << 10;

/// A pattern looked for in the service's log.
pub struct LogWatch {
    pattern: Pattern,
    next: u64,
    lines: [Vec<u8>; 2],
}

enum Pattern {
    Text(String),
    Expression(Regex),
}

impl LogWatch {
    /// Takes a record; true when a line now matches.
    fn matches(&mut self, record: &crate::log::Record) -> bool {
        let stream = usize::from(record.stream == agent_protocol::LogStream::Stderr);
        let Some(line) = self.lines.get_mut(stream) else { return false };
        if line.len() + record.bytes.len() > LONGEST_LINE {
            line.clear();
        }
        line.extend_from_slice(&record.bytes);
        let text = String::from_utf8_lossy(line);
        let found = match &self.pattern {
            Pattern::Text(pattern) => text.contains(pattern.as_str()),
            Pattern::Expression(pattern) => pattern.is_match(text.trim_end_matches(['\r', '\n'])),
        };
        if record.bytes.last() == Some(&b'\n') {
            line.clear();
        }
        found
    }
}

impl Agent {
    /// Serves `Ready`.
    ///
    /// # Errors
    /// `ServiceExited` when the service it needs does not run; `BadRequest` for a pattern or address that is none.
    pub fn ready(&mut self, id: u64, spec: ReadySpec) -> Result<(), Failure> {
        if spec.needs_service {
            let session = self.sessions.get(&SERVICE_SESSION);
            match session.map(|session| session.exit) {
                Some(None) => {}
                Some(Some(exit)) => return Err(service_exited(exit)),
                None => {
                    return Err(Failure::new(
                        ErrorKind::NoSuchSession,
                        "the machine's service was not started",
                    ));
                }
            }
        }
        let needs_service = spec.needs_service;
        if let Probe::Log { pattern, regex } = &spec.probe {
            self.watch_log(id, pattern, *regex, spec.timeout_ms)?;
        } else {
            self.work(id, move |world, channel| try_until_ready(world, channel, &spec))?;
        }
        if needs_service {
            self.needs_service.push(id);
        }
        Ok(())
    }

    fn watch_log(&mut self, id: u64, pattern: &str, regex: bool, timeout_ms: u64) -> Result<(), Failure> {
        let bad = |error| Failure::new(ErrorKind::BadRequest, format!("the pattern '{pattern}': {error}"));
        let pattern = if regex {
            Pattern::Expression(Regex::new(pattern).map_err(bad)?)
        } else {
            Pattern::Text(pattern.to_string())
        };
        let watch = LogWatch { pattern, next: self.log.start(None, None), lines: Default::default() };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.role = Role::ReadyLog(Box::new(watch));
        }
        self.deadlines.push((now_ms().saturating_add(timeout_ms), Deadline::Ready(id)));
        self.touched.push(id);
        Ok(())
    }

    /// Looks at the records that a log check has not seen.
    pub fn check_log_watch(&mut self, id: u64) {
        let Some(Role::ReadyLog(watch)) = self.conns.get_mut(&id).map(|conn| &mut conn.role) else { return };
        while let Some((at, record)) = self.log.from(watch.next) {
            watch.next = at + 1;
            if watch.matches(record) {
                self.needs_service.retain(|conn| *conn != id);
                return self.reply(id, &Reply::Done);
            }
        }
    }

    /// A log check's time is up, unless it succeeded.
    pub fn log_watch_over(&mut self, id: u64) {
        let waits = matches!(self.conns.get(&id).map(|conn| &conn.role), Some(Role::ReadyLog(_)));
        if waits {
            self.fail(
                id,
                &Failure::new(ErrorKind::TimedOut, "the pattern did not appear in the service's output"),
            );
        }
    }

    /// The main service ended: what needed it fails, who follows its log is done.
    pub fn service_ended(&mut self, exit: Exit) {
        self.wake_log_readers();
        self.settle_touched();
        for id in std::mem::take(&mut self.needs_service) {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            if let Role::Worker(pid) = conn.role {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                self.workers.remove(&pid.as_raw_nonzero().get());
            }
            self.fail(id, &service_exited(exit));
        }
    }
}

fn service_exited(exit: Exit) -> Failure {
    let how = match exit {
        Exit::Code(code) => format!("exited with code {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
    };
    Failure::new(ErrorKind::ServiceExited, format!("the machine's service {how} before it was ready"))
}

/// Runs in the copy: tries until it works or time runs out.
fn try_until_ready(world: &World, channel: &mut Channel, spec: &ReadySpec) {
    let end = now_ms().saturating_add(spec.timeout_ms);
    let interval = if spec.interval_ms == 0 { INTERVAL_MS } else { u64::from(spec.interval_ms) };
    if let Probe::After(wait) = spec.probe {
        std::thread::sleep(Duration::from_millis(wait.min(spec.timeout_ms)));
        if wait <= spec.timeout_ms {
            return channel.reply(&Reply::Done);
        }
    }
    let mut limit = TryLimit(TRY_MS);
    loop {
        let begin = now_ms();
        let tried = try_once(world, &spec.probe, limit.within(end.saturating_sub(begin)));
        limit.took(now_ms().saturating_sub(begin));
        match tried {
            Ok(()) => return channel.reply(&Reply::Done),
            // What cannot get better by waiting.
            Err(failure) if matches!(failure.kind, ErrorKind::BadRequest | ErrorKind::NoSuchUser) => {
                return channel.fail(&failure);
            }
            Err(failure) if now_ms().saturating_add(interval) >= end => {
                let text = format!("not ready after {} ms; the last try: {failure}", spec.timeout_ms);
                return channel.fail(&Failure::new(ErrorKind::TimedOut, text));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(interval)),
        }
    }
}

/// How long a try may take, in milliseconds. Each that was cut short doubles it for the next: one that hangs is tried
/// again soon, and one that has much to do (reads a whole database, on a busy host) gets its time in the end.
struct TryLimit(u64);

impl TryLimit {
    /// For a check that has `left` in all.
    fn within(&self, left: u64) -> u64 {
        left.clamp(1, self.0)
    }

    fn took(&mut self, time: u64) {
        if time >= self.0 {
            self.0 = self.0.saturating_mul(2);
        }
    }
}

fn try_once(world: &World, probe: &Probe, limit_ms: u64) -> Result<(), Failure> {
    match probe {
        Probe::Exec(spec) => command::run(world, spec, true, limit_ms),
        Probe::Socket(path) => UnixStream::connect(path)
            .map(drop)
            .map_err(|error| Failure::new(ErrorKind::Refused, format!("socket {path}: {error}"))),
        Probe::Port(port) => {
            connect(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], *port, limit_ms).map(drop)
        }
        Probe::Http(url) => http_get(url, limit_ms),
        Probe::Log { .. } | Probe::After(_) => Err(Failure::new(ErrorKind::TimedOut, "the time is not over")),
    }
}

fn connect(addresses: &[IpAddr], port: u16, limit_ms: u64) -> Result<TcpStream, Failure> {
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&SocketAddr::new(*address, port), Duration::from_millis(limit_ms)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = last.or(Some(error)),
        }
    }
    let why = last.map_or_else(|| "no address".to_string(), |error| error.to_string());
    Err(Failure::new(ErrorKind::Refused, format!("port {port}: {why}")))
}

/// An `http://` address in its parts.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    host: String,
    addresses: Vec<IpAddr>,
    port: u16,
    path: String,
}

fn parse_url(url: &str) -> Result<Url, Failure> {
    let bad = |why: &str| Failure::new(ErrorKind::BadRequest, format!("'{url}': {why}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| bad("only http:// addresses can be asked"))?;
    if rest.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(bad("an address holds no spaces or control characters"));
    }
    let (authority, path) = rest.find(['/', '?']).map_or((rest, "/"), |at| rest.split_at(at));
    let path = path.split('#').next().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| bad("the port is no number"))?)
        }
        _ => (authority, 80),
    };
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = if name.eq_ignore_ascii_case("localhost") {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        vec![name.parse().map_err(|_| bad("the host must be an address or localhost"))?]
    };
    Ok(Url { host: authority.to_string(), addresses, port, path })
}

fn http_get(url: &str, limit_ms: u64) -> Result<(), Failure> {
    let url = parse_url(url)?;
    let mut stream = connect(&url.addresses, url.port, limit_ms)?;
    let other = |error: std::io::Error| Failure::new(ErrorKind::Other, format!("GET {}: {error}", url.path));
    let limit = Some(Duration::from_millis(limit_ms));
    stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit)).map_err(other)?;
    let agent = concat!("smolvm-agent/", env!("CARGO_PKG_VERSION"));
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n",
        url.path, url.host
    );
    stream.write_all(request.as_bytes()).map_err(other)?;
    let mut line = [0u8; 64];
    let mut got = 0;
    // `HTTP/1.1 200` is all that is needed.
    while got < 12 {
        match stream.read(line.get_mut(got..).unwrap_or_default()).map_err(other)? {
            0 => break,
            n => got += n,
        }
    }
    match status(line.get(..got).unwrap_or_default()) {
        Some(200..400) => Ok(()),
        Some(status) => Err(Failure::new(ErrorKind::Other, format!("GET {} answers {status}", url.path))),
        None => Err(Failure::new(ErrorKind::Other, format!("GET {} is not answered in HTTP", url.path))),
    }
}

fn status(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.get(..12)?).ok()?;
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    rest.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let url = parse_url("http://127.0.0.1:8000/healthz?full=1#top").expect("an address");
        assert_eq!(
            (url.port, url.path.as_str(), url.host.as_str()),
            (8000, "/healthz?full=1", "127.0.0.1:8000")
        );
        assert_eq!(parse_url("http://localhost").expect("an address").addresses.len(), 2);
        let url = parse_url("http://[::1]:81?x").expect("an address");
        assert_eq!(
            (url.addresses, url.port, url.path.as_str()),
            (vec![Ipv6Addr::LOCALHOST.into()], 81, "/?x")
        );
        assert_eq!(parse_url("http://[::1]/").expect("an address").port, 80);
        for bad in
            ["https://localhost/", "http://example.invalid/", "http://1.2.3.4:x/", "http://1.2.3.4/a b\r\nX:"]
        {
            assert_eq!(parse_url(bad).expect_err(bad).kind, ErrorKind::BadRequest);
        }
    }

    #[test]
    fn a_try_that_was_cut_short_gets_longer_the_next_time() {
        let mut limit = TryLimit(TRY_MS);
        limit.took(TRY_MS - 1);
        assert_eq!((limit.within(60_000), limit.within(7), limit.within(0)), (TRY_MS, 7, 1));
        limit.took(TRY_MS);
        limit.took(TRY_MS + 1);
        assert_eq!(limit.within(60_000), 2 * TRY_MS);
        limit.took(2 * TRY_MS);
        assert_eq!((limit.within(60_000), limit.within(12_000)), (4 * TRY_MS, 12_000));
    }

    #[test]
    fn only_a_status_line_has_a_status() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.0 500\r\n\r\n"), Some(500));
        for bad in [
            &b""[..],
            b"HTTP/1.1 2",
            b"SSH-2.0-Open",
            b"HTTP/1.1 abc",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(status(bad), None);
        }
    }
}
