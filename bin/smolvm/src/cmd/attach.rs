//! `attach`: join a session that was started earlier.

use agent_protocol::{Client, Reply, Request, SERVICE_SESSION};
use anyhow::{Result, bail};
use instance::session::Target;

use crate::args::Attach;
use crate::cmd::exec::{agent, carry};
use crate::launch::Home;

pub fn attach(attach: &Attach, home: &Home) -> Result<u8> {
    let sessions = match Client::new(agent(&attach.name, home)?).call(&Request::Sessions)? {
        Reply::Sessions(sessions) => sessions,
        _ => bail!("the guest's agent answered with something else; is it of another version?"),
    };
    // The one that was named, else the service, else the newest that lives.
    let found = match attach.session {
        Some(id) => sessions.iter().find(|s| s.session == id),
        None => sessions
            .iter()
            .find(|s| s.session == SERVICE_SESSION && s.exit.is_none())
            .or_else(|| sessions.iter().filter(|s| s.exit.is_none()).max_by_key(|s| s.session)),
    };
    let Some(found) = found else {
        bail!(
            "nothing runs in `{0}` that could be joined; `smolvm exec {0} CMD` starts something",
            attach.name
        );
    };
    let target = Target::Attach { session: found.session, tty: found.tty, stdin: true };
    carry(&attach.name, agent(&attach.name, home)?, &target, home)
}
