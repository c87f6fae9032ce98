//! `build`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use build::{BuildOptions, BuildReport};

use crate::args::{Build, EngineArgs, Global};
use crate::cmd::silent;
use crate::launch::{self, Home, Mode, Plan};
use crate::ui::{self, Steps};

pub fn build(build: &Build, global: &Global) -> Result<u8> {
    let home = Home::open()?;
    let output = match &build.output {
        Some(output) => output.clone(),
        None => default_output(&build.file)?,
    };
    let report = make(&build.file, &output, build.update, &build.engine, global, &home)?;
    if global.json {
        ui::json(&report)?;
    } else if !global.quiet {
        println!("{}", report.file.display());
        let (size, cold) = (ui::bytes(report.file_bytes), report.cold_ms as f64 / 1000.0);
        let total = report.total_ms as f64 / 1000.0;
        eprintln!("smolvm: {size}; cold start {cold:.1} s, built in {total:.1} s");
    }
    Ok(0)
}

/// Builds a definition, telling of each step.
pub fn make(
    smolfile: &Path,
    output: &Path,
    update_lock: bool,
    engine: &EngineArgs,
    global: &Global,
    home: &Home,
) -> Result<BuildReport> {
    let steps = Steps::new(silent(global), global.verbose);
    let plan = Plan::new(Mode::Cold, engine);
    std::fs::create_dir_all(&home.dirs.cache).context("making the cache directory")?;
    let options = BuildOptions {
        smolfile: smolfile.to_owned(),
        output: output.to_owned(),
        cache: home.dirs.cache.clone(),
        update_lock,
        vmm: launch::vmm_options(&plan, home.dirs.cache.clone(), None)?,
    };
    let report = build::build(&options, &home.store, &steps)?;
    steps.finish();
    Ok(report)
}

/// `NAME.smolmachine` in the working directory.
fn default_output(smolfile: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(smolfile)
        .with_context(|| format!("reading {}; `smolvm init` writes a first one", smolfile.display()))?;
    let file = spec::parse(&text).map_err(|e| anyhow::anyhow!("{}: {e}", smolfile.display()))?;
    let whole = std::fs::canonicalize(smolfile)?;
    let dir = whole.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    let name = file.name.as_deref().or(dir.filter(|n| spec::valid_name(n))).unwrap_or("machine");
    Ok(PathBuf::from(format!("{name}.smolmachine")))
}
