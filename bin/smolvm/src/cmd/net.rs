//! `net`: what a machine's network did.

use anyhow::{Context, Result};
use instance::Instance;
use instance::control::{Client, Request};
use netstack::{NetReport, Refused};

use crate::args::{Global, Net, NetVerb};
use crate::launch::Home;
use crate::ui::say::{say, tell};

pub fn net(net: &Net, global: &Global, home: &Home) -> Result<u8> {
    let NetVerb::Log { name } = &net.verb;
    let instance = Instance::open(&home.dirs, name)?;
    let answer = Client::new(&instance)?.call(&Request::Network)?;
    let report: Option<NetReport> = serde_json::from_value(answer).context("reading the machine's answer")?;
    let Some(report) = report else {
        tell!("smolvm: {name} has no network; run it with --net, or build it with `net = true`");
        return Ok(0);
    };
    if global.json {
        crate::ui::json(&serde_json::to_value(&report)?)?;
        return Ok(0);
    }
    for Refused { count, protocol, to, reason, .. } in &report.refused {
        let reason = serde_json::to_value(reason)?;
        say!("{count:>6}  {protocol:<5} {to}  {}", reason.as_str().unwrap_or_default());
    }
    if report.dropped > 0 {
        tell!("smolvm: {} earlier ones are no longer kept", report.dropped);
    }
    Ok(0)
}
