//! `rebuild`: the definition in a machine file is built again, of what there is now.
//!
//! A file at a path is replaced there, a name of the store moves; so does every name that the old file had, since
//! they meant it. The old object stays in the store for the machines that came from it, until they are moved and
//! `prune` takes it.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use artifact::{Digest, MachineFile};
use build::{BuildOptions, Kept, Part};
use instance::Instance;
use serde_json::json;
use store::Origin;

use crate::args::{Global, Rebuild};
use crate::cmd::{silent, update};
use crate::interrupt::{self, Undo};
use crate::launch::{self, Home, Mode, Plan};
use crate::resolve::{self, What};
use crate::ui::say::{say, tell};
use crate::ui::{self, Steps};

pub fn rebuild(words: &Rebuild, global: &Global, home: &Home) -> Result<u8> {
    if words.output.is_some() && words.files.len() > 1 {
        bail!("-o names one file, and {} are to be built; leave it out to replace each", words.files.len());
    }
    let mut results = Vec::new();
    for word in &words.files {
        let rebuilt = one(word, words, global, home).with_context(|| format!("rebuilding {word}"))?;
        if !silent(global) {
            rebuilt.tell();
        }
        rebuilt.move_machines(words.machines, global, home)?;
        results.push(json!({
            "file": rebuilt.name, "id": rebuilt.new, "old_id": rebuilt.old, "bytes": rebuilt.bytes,
            "changes": rebuilt.changes, "machines": rebuilt.machines, "machines_moved": words.machines,
        }));
    }
    if global.json {
        ui::json(&results)?;
    }
    Ok(0)
}

/// A file that was built again.
struct Rebuilt {
    /// What a user calls it: a path or a name in the store.
    name: String,
    old: String,
    new: String,
    bytes: u64,
    changes: Vec<Part>,
    /// Machines that came from the old one.
    machines: Vec<String>,
}

fn one(word: &str, words: &Rebuild, global: &Global, home: &Home) -> Result<Rebuilt> {
    std::fs::create_dir_all(&home.dirs.cache).context("making the cache directory")?;
    let what = resolve::machine_file(word, home)?;
    let (file, _pin) = match &what {
        What::File(path) => (MachineFile::open_path(path)?, None),
        _ => {
            let pin = resolve::fetch(&what, home)?;
            (pin.open()?, Some(pin))
        }
    };
    let kept = Kept::read(&file, Path::new(word))?;
    let old = file.id();
    let (output, _scratch) = match (&words.output, &what) {
        (Some(output), _) => (output.clone(), None),
        (None, What::File(path)) => (path.clone(), None),
        (None, _) => {
            let scratch = Scratch::new(home)?;
            (scratch.path.clone(), Some(scratch))
        }
    };
    let steps = Steps::new(silent(global), global.verbose);
    let options = options(words, PathBuf::from(word), output, home)?;
    let (report, pin) = build::rebuild(&kept, words.sources.as_deref(), &options, &home.store, &steps)?;
    steps.finish();
    if words.output.is_none() {
        for tag in home.store.tags()?.into_iter().filter(|tag| tag.id == old) {
            home.store.tag(&tag.name, &pin.id(), Origin::Built)?;
        }
    }
    Ok(Rebuilt {
        name: words.output.as_ref().map_or_else(|| word.to_owned(), |path| path.display().to_string()),
        old: old.to_string(),
        new: pin.id().to_string(),
        bytes: report.file_bytes,
        changes: build::changes(&kept.lock, &report.lock),
        machines: machines(&old, home)?,
    })
}

fn options(words: &Rebuild, called: PathBuf, output: PathBuf, home: &Home) -> Result<BuildOptions> {
    let plan = Plan::new(Mode::Cold, &words.engine);
    Ok(BuildOptions {
        smolfile: called,
        output: Some(output),
        cache: home.dirs.cache.clone(),
        update_lock: true,
        no_cache: words.no_cache,
        registry: resolve::registry(home)?,
        vmm: launch::vmm_options(&plan, home.dirs.cache.clone(), None)?,
    })
}

/// Where a file is written that is to be known by its name in the store alone; gone when this is dropped, and on
/// a signal.
struct Scratch {
    path: PathBuf,
    _undo: Undo,
}

impl Scratch {
    fn new(home: &Home) -> Result<Self> {
        let path = home.dirs.cache.join(format!("rebuilt-{}.smolmachine", std::process::id()));
        let gone = path.clone();
        let nothing = || Ok::<_, Infallible>(());
        let ((), undo) = interrupt::making(nothing, |()| move || drop(std::fs::remove_file(gone)))?;
        Ok(Self { path, _undo: undo })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not there when the build failed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Machines that came from a file.
fn machines(file: &Digest, home: &Home) -> Result<Vec<String>> {
    let of_it = |instance: &Instance| instance.record().is_ok_and(|record| record.file == file.to_string());
    let all = instance::list(&home.dirs)?;
    Ok(all.iter().filter(|instance| of_it(instance)).map(|instance| instance.name().to_owned()).collect())
}

impl Rebuilt {
    fn tell(&self) {
        say!("{}", self.name);
        if self.changes.is_empty() {
            tell!("smolvm: the same packages, kernel and agent as before");
        }
        for part in &self.changes {
            let word =
                |version: &Option<String>| version.as_deref().unwrap_or("none").escape_debug().to_string();
            tell!("smolvm: {}: {} -> {}", part.name.escape_debug(), word(&part.have), word(&part.now));
        }
    }

    /// Moves the machines that came from the old file, or says how.
    fn move_machines(&self, wanted: bool, global: &Global, home: &Home) -> Result<()> {
        for name in &self.machines {
            if wanted {
                update::move_to(name, &self.name, home)
                    .with_context(|| format!("moving `{name}` to {}", self.name))?;
                if !silent(global) {
                    tell!("smolvm: `{name}` runs the new one");
                }
            } else if !silent(global) {
                tell!("smolvm: `{name}` runs the old one: smolvm update {name} --to {}", self.name);
            }
        }
        Ok(())
    }
}
