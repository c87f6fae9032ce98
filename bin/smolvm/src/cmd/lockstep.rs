//! `run --lockstep`: the same repeatable run twice at once, translated here and interpreted by another process of this
//! program, which sends the state of each vCPU after each piece of its turn. The first difference ends both.
//!
//! Strategy: repeatable runs are the same to the bit (docs/adr/0087), so that nothing but these states needs to pass
//! between the two, and neither waits for the other but for reading.

use std::ffi::OsString;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use machine::{Look, VcpuState, Watch};

use crate::cmd::vmm;
use crate::ui::say::tell;

/// Bytes of one state, at most.
const LONGEST: usize = 1 << 20;

/// What the interpreting process sends: number of the vCPU, instructions that it executed, its state.
type Record = (u32, u64, VcpuState);

/// The other run, and what it has told.
pub struct Reference {
    child: Child,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    from: BufReader<UnixStream>,
    /// Pieces that were equal.
    equal: u64,
    /// By vCPU: its instructions at the last of them.
    last: Vec<u64>,
}

impl Reference {
    /// Starts the other run: of the same command line, of which `--lockstep` is replaced. Its standard input, which a
    /// repeatable run has no use for, is where it writes to.
    pub fn start() -> Result<Self> {
        let (from, to) = UnixStream::pair().context("making a socket for the interpreter's run")?;
        let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
        let place = words.iter().position(|word| word == "--lockstep");
        words[place.context("--lockstep must be written as it is")?] = "--states-to-stdin".into();
        let mut command = Command::new(vmm::this_program());
        command.args(words).stdin(OwnedFd::from(to)).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().context("starting the interpreter's run")?;
        let seen = Seen { from: BufReader::new(from), equal: 0, last: Vec::new() };
        Ok(Self { child, seen: Arc::new(Mutex::new(seen)) })
    }

    /// Compares each piece of this run.
    pub fn watch(&self) -> Watch {
        let seen = self.seen.clone();
        let see = move |look: &Look<'_>| seen.lock().unwrap_or_else(PoisonError::into_inner).compare(look);
        Watch { plainly: false, see: Arc::new(see) }
    }

    /// This run has ended, its memory having this digest: the other one must have, too.
    pub fn finish(mut self, digest: &str) -> Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = seen.from.read(&mut [0])?;
        ensure!(
            rest == 0,
            "translated code came to its end after {} pieces, the interpreter goes on",
            seen.equal
        );
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut said)?;
        }
        self.child.wait()?;
        let other = said.lines().rev().find_map(|line| line.strip_prefix("smolvm: state "));
        let other = other.with_context(|| format!("the interpreter's run failed: {}", said.trim()))?;
        if other != digest {
            bail!(
                "registers were equal all the time, the machines are not: {digest} translated, {other} interpreted"
            );
        }
        tell!("smolvm: {} pieces and the state at the end are equal", seen.equal);
        Ok(())
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    fn compare(&mut self, look: &Look<'_>) -> Result<(), String> {
        let from = self.last.get(look.vcpu as usize).copied().unwrap_or(0);
        let other = receive(&mut self.from).map_err(|e| {
            format!(
                "the interpreter's run ended after {} equal pieces ({e}), translated code goes on",
                self.equal
            )
        })?;
        let (vcpu, instructions, state) = &other;
        if (*vcpu, *instructions) == (look.vcpu, look.instructions) && state == look.state {
            self.equal += 1;
            let vcpu = look.vcpu as usize;
            self.last.resize(self.last.len().max(vcpu + 1), 0);
            self.last[vcpu] = look.instructions;
            return Ok(());
        }
        Err(format!(
            "interpreter and translated code differ after {} equal pieces, between instructions {from} and {} of vCPU \
             {}:\n{}",
            self.equal,
            look.instructions,
            look.vcpu,
            differences(&other, look)
        ))
    }
}

/// Both states, what is equal left out of the registers.
fn differences(other: &Record, look: &Look<'_>) -> String {
    let (vcpu, instructions, old) = other;
    let new = look.state;
    let mut lines = Vec::new();
    let mut line = |name: &str, a: u64, b: u64| {
        if a != b {
            lines.push(format!("  {name}: {a:#x} interpreted, {b:#x} translated"));
        }
    };
    line("vCPU", u64::from(*vcpu), u64::from(look.vcpu));
    line("instructions", *instructions, look.instructions);
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15",
    ];
    NAMES.iter().zip(old.gpr.iter().zip(new.gpr)).for_each(|(name, (a, b))| line(name, *a, b));
    line("rip", old.rip, new.rip);
    line("rflags", old.rflags, new.rflags);
    line("cr2", old.cr2, new.cr2);
    line("cr3", old.cr3, new.cr3);
    line("tsc", old.tsc, new.tsc);
    let rest = |state: &VcpuState| VcpuState {
        gpr: [0; 16],
        rip: 0,
        rflags: 0,
        cr2: 0,
        cr3: 0,
        tsc: 0,
        ..state.clone()
    };
    let (old, new) = (rest(old), rest(new));
    if old != new {
        lines.push(format!("  the rest, interpreted: {old:?}\n  the rest, translated: {new:?}"));
    }
    lines.join("\n")
}

/// Sends each piece of this run, which is interpreted, to who holds the other end of standard input.
pub fn send_to_stdin() -> Result<Watch> {
    let stdin = io::stdin().as_fd().try_clone_to_owned().context("taking standard input for a socket")?;
    let to = Mutex::new(UnixStream::from(stdin));
    let see = move |look: &Look<'_>| {
        let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
        send(&mut *to, look).map_err(|e| format!("the run that this one is held against has ended: {e}"))
    };
    Ok(Watch { plainly: true, see: Arc::new(see) })
}

fn send(to: &mut impl Write, look: &Look<'_>) -> io::Result<()> {
    let record = (look.vcpu, look.instructions, look.state);
    let bytes = postcard::to_stdvec(&record).map_err(io::Error::other)?;
    to.write_all(&[&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat())
}

fn receive(from: &mut impl Read) -> io::Result<Record> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a state of {len} bytes")));
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}
