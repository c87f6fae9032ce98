//! Starting a program: everything is prepared in the agent, the copy only arranges itself and executes.
//!
//! Whether that worked comes back through a pipe that exec closes: nothing read means it runs, five bytes say at
//! which step and why it does not. The agent never waits for it, so a program on a hanging file system, or born into
//! a frozen group, delays nobody else.

use crate::environment::{environment, search_path};
use crate::sys::process::{Fork, exec, exit_now, fork};
use crate::sys::signals::reset_for_child;
use crate::users::{Identity, lookup};
use crate::world::World;
use agent_protocol::{ErrorKind, ExecSpec, Failure};
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, setrlimit};
use std::ffi::CString;
use std::io;

/// Open files of a process in a machine: what most programs are tested with, and room to raise it.
pub const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// Standard streams of a process.
pub enum Stdio {
    /// Three ends of pipes (or files).
    Pipes([OwnedFd; 3]),
    /// A terminal for all three, which becomes the controlling one.
    Terminal(OwnedFd),
}

/// A program ready to start.
pub struct Program {
    argv: Vec<CString>,
    env: Vec<CString>,
    candidates: Vec<CString>,
    directory: CString,
    /// Who it runs as.
    pub who: Identity,
}

/// A process that was started.
pub struct Spawned {
    /// Its id, which is also its session's and process group's.
    pub pid: Pid,
    /// Tells how its exec went; see [`outcome`].
    pub status: OwnedFd,
}

/// The step at which a start failed.
#[derive(Clone, Copy)]
enum Step {
    Setup = 1,
    Identity = 2,
    Directory = 3,
    Exec = 4,
}

/// Prepares a program from a host's words.
///
/// # Errors
/// `BadRequest` for strings that hold a NUL or no command at all, `NoSuchUser`.
pub fn prepare(world: &World, spec: &ExecSpec) -> Result<Program, Failure> {
    let text = |s: &str| {
        CString::new(s).map_err(|_| Failure::new(ErrorKind::BadRequest, format!("'{s:?}' holds a NUL byte")))
    };
    let argv = spec.argv.iter().map(|word| text(word)).collect::<Result<Vec<_>, _>>()?;
    let command = spec.argv.first().filter(|command| !command.is_empty());
    let command = command.ok_or_else(|| Failure::new(ErrorKind::BadRequest, "there is no command to run"))?;
    let who = lookup(world, spec.user.as_deref())?;
    let env = environment(&spec.env, &who, spec.tty.is_some());
    let candidates = if command.contains('/') {
        vec![text(command)?]
    } else {
        let places = search_path(&env).split(':');
        places
            .map(|dir| text(&if dir.is_empty() { command.clone() } else { format!("{dir}/{command}") }))
            .collect::<Result<_, _>>()?
    };
    let directory = text(spec.cwd.as_deref().filter(|dir| !dir.is_empty()).unwrap_or("/"))?;
    Ok(Program { argv, env, candidates, directory, who })
}

/// Starts it.
///
/// # Errors
/// The kernel's refusal to make a process or a pipe.
pub fn spawn(world: &World, program: &Program, stdio: &Stdio, user: bool) -> io::Result<Spawned> {
    let (status, report) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let cgroup = if user { world.cgroup_fd() } else { None };
    match fork(cgroup)? {
        Fork::Parent(pid) => Ok(Spawned { pid, status }),
        Fork::Child => {
            let (step, error) = become_program(world, program, stdio, cgroup.is_some());
            let code = Errno::from_io_error(&error).map_or(0, Errno::raw_os_error);
            let mut message = [step as u8, 0, 0, 0, 0];
            if let Some(tail) = message.get_mut(1..) {
                tail.copy_from_slice(&code.to_le_bytes());
            }
            let _ = rustix::io::write(&report, &message);
            exit_now(127)
        }
    }
}

/// Runs in the copy: arranges it, then executes; returns only a failure.
///
/// The program gets its three streams and nothing else, not even what the agent was itself started with.
fn become_program(world: &World, program: &Program, stdio: &Stdio, in_group: bool) -> (Step, io::Error) {
    let setup = |error: Errno| (Step::Setup, io::Error::from(error));
    let _ = rustix::process::setsid();
    crate::sys::process::close_on_exec_from(3);
    if let Err(error) = connect_streams(stdio) {
        return setup(error);
    }
    if in_group {
        // So that the process sees its group as the root; without the namespace it merely sees more.
        let _ = crate::sys::process::own_cgroup_view();
    }
    if world.pid1 {
        let limit = Rlimit { current: Some(OPEN_FILES.0), maximum: Some(OPEN_FILES.1) };
        let _ = setrlimit(Resource::Nofile, limit);
    }
    rustix::process::umask(Mode::from_bits_retain(0o022));
    if let Err(error) = assume(&program.who) {
        return (Step::Identity, error.into());
    }
    if let Err(error) = rustix::process::chdir(program.directory.as_c_str()) {
        return (Step::Directory, error.into());
    }
    reset_for_child();
    (Step::Exec, execute(program))
}

fn connect_streams(stdio: &Stdio) -> Result<(), Errno> {
    let [input, output, error] = match stdio {
        Stdio::Pipes([input, output, error]) => [input, output, error],
        Stdio::Terminal(terminal) => {
            rustix::process::ioctl_tiocsctty(terminal)?;
            [terminal; 3]
        }
    };
    rustix::stdio::dup2_stdin(input)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(error)
}

/// Takes on an identity; the order matters, since the last step gives up the right to the others.
fn assume(who: &Identity) -> Result<(), Errno> {
    use rustix::process::{Gid, Uid};
    let current = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if current == (who.uid, who.gid) && current.0 != 0 {
        // An unprivileged agent (in a test) can only be who it is.
        return Ok(());
    }
    let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Tries each place of the search path, as execvp does, but without guessing that an unknown format is a script.
fn execute(program: &Program) -> io::Error {
    let mut result = io::Error::from(Errno::NOENT);
    for candidate in &program.candidates {
        let error = exec(candidate, &program.argv, &program.env);
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => {}
            Some(Errno::ACCESS) => result = error,
            _ => return error,
        }
    }
    result
}

/// Reads how the exec went from [`Spawned::status`]: `Ok` when the program runs.
///
/// # Errors
/// The failure to report to the host, in the words of the request.
pub fn outcome(status: &OwnedFd, command: &str, directory: &str) -> Result<(), Failure> {
    let mut message = [0u8; 5];
    let got = rustix::io::read(status, &mut message).unwrap_or(0);
    let [step, code @ ..] = message;
    if got < message.len() {
        return Ok(());
    }
    let code = i32::from_le_bytes(code);
    let error = io::Error::from_raw_os_error(code);
    let errno = Errno::from_raw_os_error(code);
    let fail = |kind, text: String| Err(Failure::new(kind, text));
    match step {
        s if s == Step::Exec as u8 && matches!(errno, Errno::NOENT | Errno::NOTDIR) => {
            fail(ErrorKind::NotFound, format!("{command}: not found in the guest"))
        }
        s if s == Step::Exec as u8 => {
            fail(ErrorKind::NotExecutable, format!("{command}: cannot be executed in the guest: {error}"))
        }
        s if s == Step::Directory as u8 => {
            fail(ErrorKind::NoSuchDirectory, format!("working directory {directory} in the guest: {error}"))
        }
        s if s == Step::Identity as u8 => {
            fail(ErrorKind::Other, format!("changing to the user asked for: {error}"))
        }
        _ => fail(ErrorKind::Other, format!("preparing the process: {error}")),
    }
}
