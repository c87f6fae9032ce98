//! The agent natively: started with a Unix socket instead of vsock, driven through the protocol.
#![allow(dead_code)] // each test file uses its part

use agent_protocol::{Client, ExecSpec, Exit, Frame, FrameKind, Request, Started};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running agent, ended with the value.
pub struct Agent {
    child: Child,
    socket: PathBuf,
    pub directory: tempfile::TempDir,
}

impl Agent {
    /// Starts one with `arguments` besides the socket; `{}` in them is its scratch directory.
    pub fn start(arguments: &[&str]) -> Agent {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let socket = directory.path().join("agent.sock");
        let run = directory.path().join("run");
        std::fs::create_dir(&run).expect("a run directory");
        let place = directory.path().to_str().expect("utf-8");
        let mut child = Command::new(env!("CARGO_BIN_EXE_agent"))
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .arg("--run")
            .arg(&run)
            .args(arguments.iter().map(|argument| argument.replace("{}", place)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the agent starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output"))
            .read_line(&mut line)
            .expect("its first line");
        assert!(line.starts_with("smolvm-agent ") && line.ends_with(" ready\n"), "first line: {line:?}");
        Agent { child, socket, directory }
    }

    /// A connection for one operation.
    pub fn connect(&self) -> Client<UnixStream> {
        Client::new(self.stream())
    }

    /// A raw connection; nothing may take longer than 20 s.
    pub fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("the agent listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
        stream
    }

    /// Whether it still answers.
    pub fn alive(&self) {
        self.connect().ping().expect("the agent answers");
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a process and gives back its connection.
    pub fn exec(&self, spec: ExecSpec) -> (Client<UnixStream>, Started) {
        let mut client = self.connect();
        client.start(&Request::Exec(spec)).expect("sent");
        let started = client.started().expect("started");
        (client, started)
    }

    /// Runs a shell line to its end.
    pub fn shell(&self, line: &str) -> Ran {
        let (client, _) = self.exec(shell(line));
        finish(client)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process went.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub exit: Exit,
}

impl Ran {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).expect("utf-8")
    }
}

/// `sh -c LINE`.
pub fn shell(line: &str) -> ExecSpec {
    ExecSpec { argv: vec!["sh".into(), "-c".into(), line.into()], ..ExecSpec::default() }
}

/// Takes all output until the process ends.
pub fn finish(mut client: Client<UnixStream>) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let frame = client.next_frame().expect("a frame");
        match frame.kind {
            FrameKind::Stdout => out.extend(frame.payload),
            FrameKind::Stderr => err.extend(frame.payload),
            FrameKind::Exit => return Ran { out, err, exit: frame.decode().expect("an exit") },
            other => panic!("{other:?} while running"),
        }
    }
}

/// Reads output frames until `until` appears in what was collected.
pub fn read_until(client: &mut Client<UnixStream>, collected: &mut Vec<u8>, until: &str) {
    while !collected.windows(until.len()).any(|window| window == until.as_bytes()) {
        let frame: Frame = client.next_frame().expect("output");
        assert!(matches!(frame.kind, FrameKind::Stdout | FrameKind::Stderr), "{:?}", frame.kind);
        collected.extend(frame.payload);
    }
}

impl Agent {
    /// A file of the agent's own in /proc.
    fn proc(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.child.id()))
    }

    /// How many descriptors it holds.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).expect("its descriptors").count()
    }

    /// How often it woke up so far.
    pub fn wakeups(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("its status");
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
    }

    /// Processes it started that are still there, dead or alive.
    pub fn children(&self) -> usize {
        let id = self.child.id();
        let list = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        list.split_whitespace().count()
    }
}

impl Agent {
    /// The agent's process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }
}
