//! `balloon`: asks a machine's guest for memory, or lets it take it back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use instance::Instance;
use instance::control::{Client, Request};
use machine::Usage;
use serde_json::json;
use spec::Size;

use crate::args::{Balloon, Global};
use crate::launch::Home;
use crate::ui;
use crate::ui::say::{say, tell};

/// A guest with less cannot run what it would need to give memory back.
const LEAST: u64 = 16 << 20;
/// Bytes of a page: what a balloon is counted in.
const PAGE: u64 = 4096;
/// Between two looks at what the guest has done.
const LOOK: Duration = Duration::from_millis(20);
/// A guest that has given nothing for so long has given what it can: Linux tries again after 200 ms.
const PATIENCE: Duration = Duration::from_secs(3);

pub fn balloon(words: &Balloon, global: &Global, home: &Home) -> Result<u8> {
    let instance = Instance::open(&home.dirs, &words.name)?;
    instance.require_running()?;
    let client = Client::new(&instance)?;
    let memory = usage(&client)?.memory;
    let keep = match words.keep.as_str() {
        "all" => memory,
        size => size.parse::<Size>().map_err(anyhow::Error::msg)?.0,
    };
    if !(LEAST..=memory).contains(&keep) {
        bail!(
            "`{}` has {} of memory, and can keep {} to all of it; `smolvm run --memory` boots with more",
            words.name,
            ui::bytes(memory),
            ui::bytes(LEAST)
        );
    }
    client.call(&Request::Balloon { keep })?;
    let now = follow(&client, keep)?;
    let kept = now.memory - now.ballooned;
    if global.json {
        ui::json(&json!({ "memory": now.memory, "kept": kept, "wanted": keep, "returned": now.returned }))?;
        return Ok(0);
    }
    if !global.quiet {
        say!("{}", words.name);
        tell!("smolvm: it keeps {} of {}", ui::bytes(kept), ui::bytes(now.memory));
    }
    if kept - keep >= PAGE && !global.quiet {
        tell!(
            "smolvm: warning: the guest needs that much now; it goes on giving up memory when some becomes free"
        );
    }
    Ok(0)
}

fn usage(client: &Client<'_>) -> Result<Usage> {
    let usage = serde_json::from_value(client.call(&Request::Usage)?);
    usage.context("reading the machine's answer; is its process of another version?")
}

/// Waits until the guest has done it, or has stopped to get nearer.
fn follow(client: &Client<'_>, keep: u64) -> Result<Usage> {
    let mut last = usage(client)?;
    let mut moved = Instant::now();
    let wanted = (last.memory - keep) / PAGE * PAGE;
    while last.ballooned != wanted && moved.elapsed() < PATIENCE {
        thread::sleep(LOOK);
        let now = usage(client)?;
        if now.ballooned != last.ballooned {
            moved = Instant::now();
        }
        last = now;
    }
    Ok(last)
}
