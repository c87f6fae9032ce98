//! `prune`: what nothing uses goes.

use std::time::Duration;

use anyhow::{Context, Result};
use build::{CleanPolicy, Cleaned};
use serde_json::json;
use store::{PrunePolicy, Pruned};

use crate::args::{Global, Prune};
use crate::launch::Home;
use crate::resolve::config::Config;
use crate::ui;
use crate::ui::say::{say, tell};

/// What was done, or would be.
pub struct Done {
    pub machines: Vec<String>,
    pub pruned: Pruned,
    pub downloads: Cleaned,
    /// What was used within this time stays.
    pub keep: Option<Duration>,
    /// The most that the store is to hold.
    pub max_size: Option<u64>,
}

impl Done {
    pub fn freed(&self) -> u64 {
        self.pruned.freed().saturating_add(self.downloads.bytes)
    }
}

pub fn prune(words: &Prune, global: &Global, home: &Home) -> Result<u8> {
    let done = work(words, home)?;
    let Done { machines, pruned, downloads, .. } = &done;
    if global.json {
        let objects: Vec<String> = pruned.objects.iter().map(|(id, _)| id.to_string()).collect();
        ui::json(&json!({
            "machines": machines, "objects": objects, "downloads": downloads.files,
            "freed_bytes": done.freed(), "left_bytes": pruned.left,
        }))?;
        return Ok(0);
    }
    if global.quiet {
        return Ok(0);
    }
    let word = if words.dry_run { "would be removed" } else { "removed" };
    machines.iter().for_each(|name| say!("{name}: dead, {word}"));
    pruned.objects.iter().for_each(|(id, len)| say!("{}: {}, {word}", id.short(), ui::bytes(*len)));
    if downloads.files > 0 {
        say!("{} downloads: {}, {word}", downloads.files, ui::bytes(downloads.bytes));
    }
    say!("{} {}", ui::bytes(done.freed()), if words.dry_run { "would be freed" } else { "freed" });
    if downloads.busy && words.all {
        tell!("smolvm: a build is at work: packages and image layers stay");
    }
    if let Some(max) = done.max_size.filter(|max| pruned.left > *max) {
        tell!(
            "smolvm: the store holds {}, more than the {} that it is to hold: the rest has names or is needed \
             (`smolvm system df -v` says by what; `smolvm prune -a` takes what only has a name)",
            ui::bytes(pruned.left),
            ui::bytes(max)
        );
    }
    Ok(0)
}

/// The command line over config.toml.
pub fn work(words: &Prune, home: &Home) -> Result<Done> {
    let config = Config::read(&home.dirs)?.store;
    let (keep, max) = (words.keep.or(config.keep), words.max_size.or(config.max_size));
    let keep: Option<Duration> = keep.map(|keep| keep.0);
    let machines = instance::remove_dead(&home.dirs, words.dry_run)?;
    // What a power failure took of it is known by the machines.
    instance::hold_needed(&home.dirs, &home.store)?;
    let policy = PrunePolicy {
        named: words.all,
        unused_for: keep,
        max_size: max.map(|max| max.0),
        dry_run: words.dry_run,
    };
    let pruned = home.store.prune(policy).context("pruning the store")?;
    if !words.dry_run {
        host::sweep();
        build::forget_pruned(&home.dirs.cache, &home.store);
    }
    let whole = if words.all { Some(keep.unwrap_or_default()) } else { keep };
    let clean = CleanPolicy { unused_for: whole, dry_run: words.dry_run };
    let downloads = build::clean_downloads(&home.dirs.cache, clean)?;
    Ok(Done { machines, pruned, downloads, keep, max_size: policy.max_size })
}
