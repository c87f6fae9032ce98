//! The kernel's small services.

use std::io::{Read, Write};

use crate::sys;

/// getppid, which asks nothing of the kernel but the way in and out.
pub fn null_call(times: u64) -> u64 {
    (0..times).map(|_| u64::from(sys::parent() != 0)).sum()
}

/// A child that exits at once, waited for.
pub fn fork_exit(times: u64) -> u64 {
    (0..times).map(|_| u64::from(sys::fork_and_wait(|| ()))).sum()
}

/// A child that becomes this program again, which exits at once.
pub fn fork_exec(times: u64) -> u64 {
    (0..times).map(|_| u64::from(sys::fork_and_wait(sys::become_exit))).sum()
}

/// One byte there and back between two processes.
pub fn ping_pong(times: u64) -> u64 {
    let Ok((mut here_in, mut there_out)) = std::io::pipe() else { return 0 };
    let Ok((mut there_in, mut here_out)) = std::io::pipe() else { return 0 };
    let mut byte = [1u8];
    let mut done = 0;
    let mut parent = || {
        for _ in 0..times {
            if here_out.write_all(&byte).is_err() || here_in.read_exact(&mut byte).is_err() {
                break;
            }
            done += 1;
        }
    };
    let child = || {
        let mut byte = [0u8];
        for _ in 0..times {
            if there_in.read_exact(&mut byte).is_err() || there_out.write_all(&byte).is_err() {
                break;
            }
        }
    };
    sys::fork_beside(child, &mut parent);
    done
}
