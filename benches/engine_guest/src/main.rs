//! PID 1 of a guest; or `serve` on the standard streams; or `micro NAME SIZE`; or `hold MIB HOW`; or `exit`, which does.

use std::io::{stdin, stdout};
use std::process::ExitCode;

use engine_guest::{boot, hold, micro, serve};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The kernel gives PID 1 the words of its command line that it does not know.
        _ if std::process::id() == 1 => boot::run(),
        ["exit"] => return ExitCode::SUCCESS,
        ["micro", name, size] => micro::child(name, size),
        ["hold", mib, how] => hold::hold(mib, how),
        ["serve"] => serve::serve(stdin().lock(), stdout().lock()),
        _ => Err("usage: engine_guest serve | micro NAME SIZE | hold MIB pages|bytes | exit".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("engine_guest: {why}");
            ExitCode::FAILURE
        }
    }
}
