//! Workloads that are Debian's programs. Everything they write is in /dev/shm: the engines are measured,
//! not the disks below them. The scripts are in /bench of the root (benches/engine/root).

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::micro::Random;
use crate::protocol::{Result, hash};
use crate::table::Outcome;

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";
/// Of the server that pgbench talks to.
const CLUSTER: &str = "/dev/shm/cluster";
/// Of the row that measures making one.
const FRESH_CLUSTER: &str = "/dev/shm/fresh";

/// Nothing to finish.
///
/// # Errors
/// None.
pub fn nothing() -> Result<()> {
    Ok(())
}

/// Runs a command to its end; gives its standard output.
///
/// # Errors
/// It could not start, or ended badly: how, and the last that it said.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    command.stdin(Stdio::null()).stderr(Stdio::piped()).current_dir("/");
    command.env_clear().env("PATH", path).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let tail: String = said.chars().skip(said.chars().count().saturating_sub(400)).collect();
    let how = match output.status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit {}", output.status.code().unwrap_or(-1)),
    };
    Err(format!("{name}: {how}: {}", tail.trim()))
}

fn timed(commands: impl IntoIterator<Item = Command>) -> Outcome {
    let begun = Instant::now();
    let mut said = Vec::new();
    for mut command in commands {
        said.extend(output(command.stdout(Stdio::piped()))?);
    }
    Ok((begun.elapsed().as_nanos() as u64, hash(&said)))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn data_path(size: u64) -> String {
    format!("/dev/shm/data-{size}")
}

/// A file of `size` bytes of words, as compressible as text is.
///
/// # Errors
/// It cannot be written.
pub fn data(size: u64) -> Result<()> {
    let path = data_path(size);
    if Path::new(&path).exists() {
        return Ok(());
    }
    let failed = |e: std::io::Error| format!("{path}: {e}");
    let mut random = Random::new(7);
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| {
            let bits = random.next();
            let letters = (0..2 + bits % 8).map(|i| b"etaoinshrdlucmfw"[(bits >> (8 + i * 4) & 15) as usize]);
            letters.chain([b' ']).collect()
        })
        .collect();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?);
    let mut left = size as usize;
    while left > 0 {
        let word = &words[(random.next() >> 52) as usize];
        let part = &word[..word.len().min(left)];
        file.write_all(part).map_err(failed)?;
        left -= part.len();
    }
    file.flush().map_err(failed)?;
    for program in ["sha256sum", "gzip"] {
        output(&mut command(&[program, "--version"]))?;
    }
    Ok(())
}

/// # Errors
/// The program's.
pub fn sha256(size: u64) -> Outcome {
    timed([command(&["sha256sum", &data_path(size)])])
}

/// # Errors
/// The program's.
pub fn gzip(size: u64) -> Outcome {
    timed([command(&["gzip", "-1", "-n", "-c", &data_path(size)])])
}

fn python(script: &str, size: u64) -> Command {
    command(&["python3", "-I", "-B", &format!("/bench/{script}.py"), &size.to_string()])
}

/// Brings the interpreter and its library into the page cache.
///
/// # Errors
/// The program's.
pub fn warm_python(_size: u64) -> Result<()> {
    output(&mut command(&["python3", "-I", "-B", "-c", "import json, re, sys"])).map(drop)
}

/// # Errors
/// The program's.
pub fn python_start(times: u64) -> Outcome {
    timed((0..times).map(|_| command(&["python3", "-I", "-B", "-c", "pass"])))
}

/// # Errors
/// The program's.
pub fn pidigits(size: u64) -> Outcome {
    timed([python("pidigits", size)])
}

/// # Errors
/// The program's.
pub fn json(size: u64) -> Outcome {
    timed([python("jsons", size)])
}

/// # Errors
/// The program's.
pub fn regex(size: u64) -> Outcome {
    timed([python("regex", size)])
}

/// # Errors
/// The program's.
pub fn nbody(size: u64) -> Outcome {
    timed([python("nbody", size)])
}

/// # Errors
/// The program's.
pub fn warm_sqlite(_size: u64) -> Result<()> {
    output(&mut command(&["sqlite3", ":memory:", "select 1"])).map(drop)
}

/// Rows in, an index, three questions.
///
/// # Errors
/// The program's.
pub fn sqlite(rows: u64) -> Outcome {
    let path = "/dev/shm/bench.sqlite";
    let _ = fs::remove_file(path);
    let insert = format!(
        "create table t (id integer primary key, name text, value real);
         with recursive n(i) as (select 1 union all select i + 1 from n where i < {rows})
         insert into t select i, 'name ' || (i * 7919 % 10007), i * 0.5 from n;
         create index by_name on t (name);"
    );
    let ask = "select count(*), sum(value) from t where name like 'name 1%';
               select name, count(*) c from t group by name order by c desc, name limit 5;
               select count(*) from t a join t b on b.name = a.name where a.id % 100 = 3;";
    timed([command(&["sqlite3", path, &insert]), command(&["sqlite3", path, ask])])
}

/// # Errors
/// The program's.
pub fn warm_node(_size: u64) -> Result<()> {
    output(&mut command(&["node", "-e", "0"])).map(drop)
}

/// # Errors
/// The program's.
pub fn node_start(times: u64) -> Outcome {
    timed((0..times).map(|_| command(&["node", "-e", "0"])))
}

/// # Errors
/// The program's.
pub fn node_loop(size: u64) -> Outcome {
    timed([command(&["node", "/bench/loop.js", &size.to_string()])])
}

/// A program of PostgreSQL's as its user.
fn postgres(program: &str, words: &[&str]) -> Result<Command> {
    let users = fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let line = users.lines().find_map(|l| l.strip_prefix("postgres:")).ok_or("no user postgres")?;
    let ids: Vec<u32> = line.split(':').skip(1).take(2).filter_map(|id| id.parse().ok()).collect();
    let [user, group] = ids[..] else { return Err(format!("strange line in /etc/passwd: {line}")) };
    let mut command = Command::new(format!("{POSTGRES}/{program}"));
    command.args(words).uid(user).gid(group);
    Ok(command)
}

fn make_cluster(at: &str) -> Result<Command> {
    let _ = fs::remove_dir_all(at);
    postgres("initdb", &["-D", at, "-A", "trust", "--no-instructions", "--locale=C.UTF-8"])
}

/// # Errors
/// The program's.
pub fn warm_postgres(_size: u64) -> Result<()> {
    output(&mut postgres("postgres", &["--version"])?).map(drop)
}

/// # Errors
/// The program's.
pub fn initdb(_size: u64) -> Outcome {
    let (ns, _) = timed([make_cluster(FRESH_CLUSTER)?])?;
    let _ = fs::remove_dir_all(FRESH_CLUSTER);
    Ok((ns, 0))
}

/// A cluster, its server, the tables of pgbench.
///
/// # Errors
/// The programs'.
pub fn start_postgres(_size: u64) -> Result<()> {
    if Path::new(CLUSTER).join("postmaster.pid").exists() {
        return Ok(());
    }
    output(&mut make_cluster(CLUSTER)?)?;
    let options = "-c listen_addresses= -c unix_socket_directories=/dev/shm -c autovacuum=off";
    let log = "/dev/shm/cluster.log";
    // The server would hold the pipe of its standard output open: none is given.
    let start = ["-D", CLUSTER, "-l", log, "-w", "-t", "120", "-o", options, "start"];
    output(postgres("pg_ctl", &start)?.stdout(Stdio::null()))?;
    output(&mut postgres("pgbench", &["-h", "/dev/shm", "-i", "-q", "-s", "1", "postgres"])?).map(drop)
}

/// # Errors
/// The program's.
pub fn stop_postgres() -> Result<()> {
    output(&mut postgres("pg_ctl", &["-D", CLUSTER, "-m", "immediate", "stop"])?)?;
    fs::remove_dir_all(CLUSTER).map_err(|e| format!("{CLUSTER}: {e}"))
}

/// The nanoseconds are those of 1000 transactions.
///
/// # Errors
/// The program's; or it did not say what it measured.
pub fn pgbench(seconds: u64) -> Outcome {
    let seconds = seconds.to_string();
    let words = ["-h", "/dev/shm", "-n", "-T", &seconds, "-c", "1", "postgres"];
    let said = output(&mut postgres("pgbench", &words)?)?;
    let said = String::from_utf8_lossy(&said);
    let tps = said.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    match tps {
        Some(tps) if tps > 0.0 => Ok(((1e12 / tps) as u64, 0)),
        _ => Err(format!("pgbench said no rate: {said}")),
    }
}
