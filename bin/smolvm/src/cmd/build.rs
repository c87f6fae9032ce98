//! `build`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use build::{BuildOptions, BuildReport};

use crate::args::{Build, EngineArgs, Global};
use crate::cmd::silent;
use crate::launch::{self, Home, Mode, Plan};
use crate::ui::say::{say, tell};
use crate::ui::{self, Steps};

pub fn build(build: &Build, global: &Global) -> Result<u8> {
    let home = Home::open()?;
    let how = How { output: build.output.clone(), update_lock: build.update, no_cache: build.no_cache };
    let report = make(&build.file, how, &build.engine, global, &home)?;
    if global.json {
        ui::json(&report)?;
    } else if !global.quiet {
        say!("{}", report.file.display());
        tell(&report);
    }
    Ok(0)
}

/// What is special about a build.
#[derive(Default)]
pub struct How {
    /// The file to write; named by the definition when absent.
    pub output: Option<PathBuf>,
    pub update_lock: bool,
    pub no_cache: bool,
}

fn tell(report: &BuildReport) {
    let sizes = report.sizes;
    tell!(
        "smolvm: {}: memory {}, root {}, kernel {} ({:.2} x memory and root)",
        ui::bytes(sizes.file),
        ui::bytes(sizes.nonzero_memory),
        ui::bytes(sizes.root_images),
        ui::bytes(sizes.boot),
        sizes.ratio
    );
    if let [.., _, _] = report.snapshots[..] {
        let names: Vec<&str> = report.snapshots.iter().map(|s| s.name.as_str()).collect();
        tell!("smolvm: snapshots: {} (the last is the default to resume)", names.join(", "));
    }
    let seconds = |ms: u64| ms as f64 / 1000.0;
    let cold = match report.cold_ms {
        0 => String::new(),
        ms => format!("cold start {:.1} s, ", seconds(ms)),
    };
    tell!("smolvm: {cold}built in {:.1} s", seconds(report.total_ms));
}

/// Builds a definition, telling of each step.
pub fn make(
    smolfile: &Path,
    how: How,
    engine: &EngineArgs,
    global: &Global,
    home: &Home,
) -> Result<BuildReport> {
    let steps = Steps::new(silent(global), global.verbose);
    let plan = Plan::new(Mode::Cold, engine);
    std::fs::create_dir_all(&home.dirs.cache).context("making the cache directory")?;
    let options = BuildOptions {
        smolfile: smolfile.to_owned(),
        output: how.output,
        cache: home.dirs.cache.clone(),
        update_lock: how.update_lock,
        no_cache: how.no_cache,
        registry: crate::resolve::registry(home)?,
        vmm: launch::vmm_options(&plan, home.dirs.cache.clone(), None)?,
    };
    let report = build::build(&options, &home.store, &steps)?;
    steps.finish();
    Ok(report)
}
