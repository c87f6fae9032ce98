//! [`build`]: the whole way from a Smolfile to a machine file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use artifact::{MachineFile, SectionKind};
use image::oci::{Image, ImageName, OciOptions, RegistryOptions};
use instance::{FileSizes, FreezeReport, VmmOptions, io_error};
use serde::Serialize;
use store::{Origin, Pin, Store};

use crate::base::RootSource;
use crate::check::{Definition, check};
use crate::downloads;
use crate::error::Error;
use crate::job::Job;
use crate::kept::Kept;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::root;
use crate::snapshots::{self, Frozen, Point};
use crate::steps::Steps;

/// What to build and where.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The definition.
    pub smolfile: PathBuf,
    /// The file to write; `NAME.smolmachine` in the working directory when absent.
    pub output: Option<PathBuf>,
    /// Cache of packages, of what earlier builds made, and spools.
    pub cache: PathBuf,
    /// Resolve anew instead of following `Smolfile.lock`.
    pub update_lock: bool,
    /// Make everything anew, whatever earlier builds did.
    pub no_cache: bool,
    /// How registries of container images are asked.
    pub registry: RegistryOptions,
    pub vmm: VmmOptions,
}

/// One of the file's snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotReport {
    pub name: String,
    /// The step after which it was made; ready when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_step: Option<usize>,
}

/// What a build took and made.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    pub file: PathBuf,
    pub file_bytes: u64,
    /// Identity of the base's root image, BLAKE3.
    pub root: String,
    /// In the definition's order; the last is the default to resume.
    pub snapshots: Vec<SnapshotReport>,
    /// Steps that were run; the others were known from earlier builds.
    pub steps_run: usize,
    /// From the start of the final boot to ready; 0 when the machine is not run until ready.
    pub cold_ms: u64,
    pub total_ms: u64,
    pub freeze: FreezeReport,
    pub sizes: FileSizes,
    /// Exactly what it was built of.
    #[serde(skip)]
    pub lock: Lock,
}

/// Builds a machine file.
///
/// # Errors
/// [`Error`]; the output's old file, if any, is untouched then.
pub fn build(options: &BuildOptions, store: &Store, progress: &dyn Progress) -> Result<BuildReport, Error> {
    let begun = Instant::now();
    let definition = check(&options.smolfile)?;
    let lock_path = options.smolfile.with_file_name("Smolfile.lock");
    let old = if options.update_lock { None } else { Lock::read(&lock_path)? };
    let name = definition.spec.name.clone();
    let (report, pin) =
        run(options, definition, Locks::Beside { path: &lock_path, old: old.as_ref() }, store, progress)?;
    store.tag(&name, &pin.id(), Origin::Built)?;
    Ok(BuildReport { total_ms: begun.elapsed().as_millis() as u64, ..report })
}

/// Builds the definition that a machine file holds once more, of what its packages, its image and this smolvm are
/// now. `options.smolfile` is what messages call the definition; what it names of this host lies below `sources`.
/// No name of the store is given.
///
/// # Errors
/// As [`build`]; [`Error::Rebuild`] when the definition needs `sources` and there are none.
pub fn rebuild(
    kept: &Kept,
    sources: Option<&Path>,
    options: &BuildOptions,
    store: &Store,
    progress: &dyn Progress,
) -> Result<(BuildReport, Pin), Error> {
    let begun = Instant::now();
    let definition = kept.definition(sources)?;
    let (report, pin) = run(options, definition, Locks::Kept(&kept.lock), store, progress)?;
    Ok((BuildReport { total_ms: begun.elapsed().as_millis() as u64, ..report }, pin))
}

/// The lock of an earlier build.
enum Locks<'a> {
    /// The file beside the definition: followed, and written.
    Beside { path: &'a Path, old: Option<&'a Lock> },
    /// The one in the file that is built again: compared.
    Kept(&'a Lock),
}

impl Locks<'_> {
    fn followed(&self) -> Option<&Lock> {
        match self {
            Locks::Beside { old, .. } => *old,
            Locks::Kept(_) => None,
        }
    }
}

fn run(
    options: &BuildOptions,
    definition: Definition,
    locks: Locks<'_>,
    store: &Store,
    progress: &dyn Progress,
) -> Result<(BuildReport, Pin), Error> {
    fs::create_dir_all(&options.cache).map_err(io_error("make the directory", &options.cache))?;
    let _in_use = downloads::in_use(&options.cache)?;
    let image = image(options, &definition, locks.followed(), progress)?;
    let job = Job::new(options, store, progress, definition, image)?;
    let made = make(&job, &locks);
    job.clean();
    made
}

/// What `[root] image` names: the very image of the lock, where it is this definition's.
fn image(
    options: &BuildOptions,
    definition: &Definition,
    old: Option<&Lock>,
    progress: &dyn Progress,
) -> Result<Option<Image>, Error> {
    let Some(word) = &definition.file.root.image else { return Ok(None) };
    progress.step(&format!("looking at {word}"));
    let locked =
        old.filter(|lock| lock.definition == definition.digest()).and_then(|lock| lock.image.as_ref());
    let oci = OciOptions { cache: options.cache.clone(), registry: options.registry.clone() };
    let name = ImageName::parse(word, &definition.dir)?;
    Ok(Some(Image::open(&name, &oci, locked.map(|lock| lock.manifest.as_str()))?))
}

fn make(job: &Job<'_>, locks: &Locks<'_>) -> Result<(BuildReport, Pin), Error> {
    let old = locks.followed();
    let root = root::gather(job, old)?;
    if let Locks::Kept(lock) = locks
        && lock.host_sources() != root.lock.host_sources()
    {
        job.progress.warn("the files in --sources are not those that it was built of: the new machine has them as they are now");
    }
    let points = snapshots::points(&job.definition.file);
    let mut steps = Steps::new(job, &root);
    let mut roots: Vec<(&Point, Pin)> = Vec::new();
    for point in &points {
        if let Some(after) = point.after {
            roots.push((point, steps.root_after(after)?));
        }
    }
    let whole = steps.root_after(job.definition.file.build.steps.len())?;
    let steps_run = steps.ran;
    drop(steps);
    let base = job.write_base(&job.definition.spec, RootSource::Base(&whole.open()?), &root.lock)?;
    let lock = recorded(job, root.lock, old, &base)?;
    if let Locks::Beside { path, .. } = locks {
        lock.write(path)?;
    }
    let frozen = roots
        .into_iter()
        .map(|(point, root)| snapshots::freeze_after_step(job, point, root))
        .collect::<Result<Vec<Frozen>, Error>>()?;
    let default = snapshots::assemble(job, &points, &frozen, base)?;
    drop(frozen);
    let output = job.output();
    // The first run finds it in the store already.
    let pin = job.store.import(&output)?;
    let file = MachineFile::open_path(&output)?;
    let report = BuildReport {
        file_bytes: file.len(),
        sizes: instance::sizes(&file)?,
        file: output,
        root: lock.root.clone().unwrap_or_default(),
        snapshots: points.into_iter().map(|p| SnapshotReport { name: p.name, after_step: p.after }).collect(),
        steps_run,
        cold_ms: default.cold_ms,
        total_ms: 0,
        freeze: default.freeze,
        lock,
    };
    Ok((report, pin))
}

/// The lock with the finished root's digest, compared with what an old lock promised.
fn recorded(job: &Job<'_>, mut lock: Lock, old: Option<&Lock>, base: &Pin) -> Result<Lock, Error> {
    let root = base.open()?.require(SectionKind::RootImage, 0)?.digest.to_string();
    let same_inputs = |old: &&Lock| {
        (&old.definition, &old.guest, &old.kernel, &old.packages, &old.image, &old.sources)
            == (&lock.definition, &lock.guest, &lock.kernel, &lock.packages, &lock.image, &lock.sources)
    };
    lock.steps = job.definition.steps_digest();
    if let Some(promised) =
        old.filter(same_inputs).filter(|old| old.steps == lock.steps).and_then(|old| old.root.as_ref())
        && *promised != root
    {
        job.progress
            .warn("the root image differs from the one in Smolfile.lock: a build step is not reproducible");
    }
    lock.root = Some(root);
    Ok(lock)
}
