//! The workloads. Sizes make a row take 0.5 to 5 s under QEMU TCG (some programs have a smallest size
//! that is more).

use crate::micro::{calls, compute, memory, system};
use crate::programs;
use crate::protocol::Result;

/// Nanoseconds and check value.
pub type Outcome = Result<(u64, u64)>;

/// How a workload is done.
#[derive(Clone, Copy)]
pub enum Work {
    /// A function of its size, in a process of its own; gives the check value.
    Micro(fn(u64) -> u64),
    /// Something that runs programs of the root.
    Program { prepare: fn(u64) -> Result<()>, run: fn(u64) -> Outcome, finish: fn() -> Result<()> },
}

/// One row.
pub struct Workload {
    pub name: &'static str,
    pub what: &'static str,
    /// Full size, in the workload's own unit.
    pub size: u64,
    /// vCPUs of the machine that it runs in.
    pub cpus: u32,
    pub work: Work,
}

impl Workload {
    /// The size with a divisor: 1 at least.
    pub fn scaled(&self, divisor: u64) -> u64 {
        (self.size / divisor.max(1)).max(1)
    }
}

/// The row of a name.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<&'static Workload> {
    WORKLOADS.iter().find(|w| w.name == name).ok_or_else(|| format!("no workload is called {name}"))
}

const fn micro(name: &'static str, what: &'static str, size: u64, function: fn(u64) -> u64) -> Workload {
    Workload { name, what, size, cpus: 1, work: Work::Micro(function) }
}

const fn pair(name: &'static str, what: &'static str, size: u64, function: fn(u64) -> u64) -> Workload {
    Workload { cpus: 2, ..micro(name, what, size, function) }
}

const fn program(
    name: &'static str,
    what: &'static str,
    size: u64,
    prepare: fn(u64) -> Result<()>,
    run: fn(u64) -> Outcome,
) -> Workload {
    Workload { name, what, size, cpus: 1, work: Work::Program { prepare, run, finish: programs::nothing } }
}

/// Every row, in the order of the table.
pub static WORKLOADS: &[Workload] = &[
    micro("int", "integer loop", 300_000_000, compute::integers),
    micro("branch", "branches on random bits", 100_000_000, compute::branches),
    micro("indirect", "indirect calls, 16 targets at random", 40_000_000, calls::indirect),
    micro("direct", "direct calls and returns (recursion)", 1000, calls::recursion),
    micro("chase", "pointer chase over 4 MB", 20_000_000, memory::chase),
    micro("sieve", "sieve of Eratosthenes, 8 MB", 4, memory::sieve),
    micro("matmul", "double matrix product, 320 x 320", 3, compute::matrix),
    micro("x87", "x87 arithmetic", 8_000_000, compute::x87),
    micro("memset", "memset of 256 MB", 256 << 20, memory::set),
    micro("memcpy", "memcpy of 256 MB", 256 << 20, memory::copy),
    micro("syscall", "null system call", 4_000_000, system::null_call),
    micro("fork", "fork, exit, wait", 3000, system::fork_exit),
    micro("exec", "fork, exec, exit, wait", 700, system::fork_exec),
    micro("fault", "page faults (anonymous memory)", 600_000, memory::faults),
    micro("pipe", "pipe ping-pong of two processes", 60_000, system::ping_pong),
    pair("int-2", "integer loop, two threads", 300_000_000, compute::integers_twice),
    pair("sieve-2", "sieve, two threads", 4, memory::sieve_twice),
    program("sha256", "sha256sum of 64 MB", 64 << 20, programs::data, programs::sha256),
    program("gzip", "gzip -1 of 64 MB", 64 << 20, programs::data, programs::gzip),
    program("py-start", "CPython start, 10 times", 10, programs::warm_python, programs::python_start),
    program("py-pidigits", "CPython pidigits", 1000, programs::warm_python, programs::pidigits),
    program("py-json", "CPython json", 20, programs::warm_python, programs::json),
    program("py-regex", "CPython regular expressions", 12, programs::warm_python, programs::regex),
    program("py-nbody", "CPython nbody", 12_000, programs::warm_python, programs::nbody),
    program("sqlite", "sqlite3 inserts and selects", 40_000, programs::warm_sqlite, programs::sqlite),
    program("node-start", "Node start, 3 times", 3, programs::warm_node, programs::node_start),
    program("node-loop", "Node compute loop", 20, programs::warm_node, programs::node_loop),
    program("initdb", "PostgreSQL initdb", 1, programs::warm_postgres, programs::initdb),
    Workload {
        name: "pgbench",
        what: "pgbench for 20 s, per 1000 transactions",
        size: 20,
        cpus: 1,
        work: Work::Program {
            prepare: programs::start_postgres,
            run: programs::pgbench,
            finish: programs::stop_postgres,
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different_and_found() {
        for workload in WORKLOADS {
            assert!(std::ptr::eq(find(workload.name).unwrap(), workload), "{}", workload.name);
        }
        assert!(find("nothing").is_err());
    }

    #[test]
    fn micro_workloads_give_the_same_check_twice() {
        for workload in WORKLOADS {
            if let Work::Micro(function) = workload.work
                && !["exec", "memset", "memcpy", "fault", "matmul", "sieve", "sieve-2"]
                    .contains(&workload.name)
            {
                let size = workload.scaled(10_000);
                assert_eq!(function(size), function(size), "{}", workload.name);
            }
        }
    }
}
