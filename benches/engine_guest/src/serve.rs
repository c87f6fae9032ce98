//! Does what lines on a channel ask for, one at a time.

use std::io::{BufRead, BufReader, Read, Write};

use crate::protocol::{Answer, CALL, READY, Request, Result, Verb};
use crate::table::{self, Outcome, Work};
use crate::{devices, micro};

/// Serves until the channel ends.
///
/// # Errors
/// The channel's.
pub fn serve(from: impl Read, mut to: impl Write) -> Result<()> {
    let mut say = |line: &str| {
        to.write_all(line.as_bytes()).and_then(|()| to.flush()).map_err(|e| format!("the channel: {e}"))
    };
    say(&format!("{READY}\n"))?;
    for line in BufReader::new(from).lines() {
        let line = line.map_err(|e| format!("the channel: {e}"))?;
        let outcome = match line.strip_prefix(CALL) {
            Some(words) => devices::call(words.trim()),
            None => Request::parse(&line).and_then(|request| perform(&request)),
        };
        let answer = match outcome {
            Ok((ns, check)) => Answer::Done { ns, check },
            Err(why) => Answer::Failed(why),
        };
        say(&answer.line())?;
    }
    Ok(())
}

fn perform(request: &Request) -> Outcome {
    let workload = table::find(&request.name)?;
    let size = workload.scaled(request.divisor);
    let done = |()| (0, 0);
    match (request.verb, workload.work) {
        (Verb::Prepare | Verb::Run, Work::Micro(_)) => micro::run(workload.name, size),
        (Verb::Finish, Work::Micro(_)) => Ok((0, 0)),
        (Verb::Prepare, Work::Program { prepare, .. }) => prepare(size).map(done),
        (Verb::Run, Work::Program { run, .. }) => run(size),
        (Verb::Finish, Work::Program { finish, .. }) => finish().map(done),
    }
}
