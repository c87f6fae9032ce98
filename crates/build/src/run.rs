//! [`build`]: the whole way from a Smolfile to a machine file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use artifact::hash::Digest;
use artifact::{MachineFileWriter, SectionKind};
use image::{ErofsOptions, MergeOptions, merge_upper};
use instance::{FreezeReport, Media, SnapshotTarget, Vmm, VmmOptions};
use serde::Serialize;
use spec::{MachineSpec, Smolfile};
use store::{Origin, Pin, Store};

use crate::base::{self, BaseParts};
use crate::error::{Error, io_error};
use crate::lock::Lock;
use crate::progress::Progress;
use crate::root::{self, Places, Root};
use crate::stage;

/// What to build and where.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The definition.
    pub smolfile: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// Cache of packages and spools.
    pub cache: PathBuf,
    /// Resolve anew instead of following `Smolfile.lock`.
    pub update_lock: bool,
    pub vmm: VmmOptions,
}

/// What a build took and made.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    pub file: PathBuf,
    pub file_bytes: u64,
    /// Identity of the base's root image, BLAKE3.
    pub root: String,
    /// From the start of the final boot to ready.
    pub cold_ms: u64,
    pub total_ms: u64,
    pub freeze: FreezeReport,
}

/// Builds a machine file.
///
/// # Errors
/// [`Error`]; the output's old file, if any, is untouched then.
pub fn build(options: &BuildOptions, store: &Store, progress: &dyn Progress) -> Result<BuildReport, Error> {
    let begun = Instant::now();
    let (definition, digest) = read_definition(&options.smolfile)?;
    let dir = options.smolfile.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Some(point) = definition.snapshot.iter().find(|s| s.after_step.is_some()) {
        return Err(Error::NotYet(format!("snapshot `{}` after a step", point.name)));
    }
    let spec = resolve(&definition, dir, &options.smolfile)?;
    let lock_path = options.smolfile.with_file_name("Smolfile.lock");
    let old = if options.update_lock { None } else { Lock::read(&lock_path)? };
    fs::create_dir_all(&options.cache).map_err(io_error("make the directory", &options.cache))?;
    let places = Places { dir, cache: &options.cache, lock: old.as_ref() };
    let root = root::gather(&definition.root, digest, &places, progress)?;
    let (base, lock) = finished_base(options, store, &definition, &spec, root, progress)?;
    let lock = recorded(lock, old.as_ref(), &base, progress)?;
    lock.write(&lock_path)?;
    let report = freeze_ready(options, base, progress)?;
    // The first run finds it in the store already, also by its name.
    let pin = store.import(&options.output)?;
    store.tag(&spec.name, &pin.id(), Origin::Built)?;
    Ok(BuildReport {
        file: options.output.clone(),
        root: lock.root.unwrap_or_default(),
        total_ms: begun.elapsed().as_millis() as u64,
        ..report
    })
}

/// The definition, and the digest of the part that its root is resolved from.
fn read_definition(path: &Path) -> Result<(Smolfile, String), Error> {
    let text = fs::read_to_string(path).map_err(io_error("read the definition", path))?;
    let definition =
        spec::parse(&text).map_err(|source| Error::Definition { path: path.to_owned(), source })?;
    let packages = definition.root.packages.clone().unwrap_or_default().join("\n");
    Ok((definition, Digest::of(packages.as_bytes()).to_string()))
}

fn resolve(definition: &Smolfile, dir: &Path, path: &Path) -> Result<MachineSpec, Error> {
    let whole = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name =
        whole.file_name().and_then(|n| n.to_str()).filter(|n| spec::valid_name(n)).unwrap_or("machine");
    let spec =
        definition.resolve(name).map_err(|source| Error::Definition { path: path.to_owned(), source })?;
    let have = host_memory_mib();
    if spec.memory >> 20 > have {
        return Err(Error::TooMuchMemory { asked: spec.memory >> 20, have });
    }
    Ok(spec)
}

/// This host's memory in MiB; without limit where it cannot be told.
fn host_memory_mib() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map_or(u64::MAX, |kib| kib >> 10)
}

/// Sources in, scripts and steps run, what they changed merged back: the base to boot.
fn finished_base(
    options: &BuildOptions,
    store: &Store,
    definition: &Smolfile,
    spec: &MachineSpec,
    mut root: Root,
    progress: &dyn Progress,
) -> Result<(Pin, Lock), Error> {
    let steps = &definition.build.steps;
    if root.configure.is_some() || !steps.is_empty() {
        progress.step("writing the first root image");
        let media = Media::open(write_base(store, spec, &root)?)?;
        progress.step("booting it");
        let (vmm, _) = Vmm::boot(&media, None, options.vmm.clone())?;
        if let Some(script) = root.configure.take() {
            progress.step("configuring packages inside the machine");
            stage::configure(&vmm, &script, progress)?;
        }
        for (i, line) in steps.iter().enumerate() {
            progress.step(&format!("step {} of {}: {line}", i + 1, steps.len()));
            stage::step(&vmm, i + 1, line, progress)?;
        }
        progress.step("taking the root back");
        let upper = stage::export(&vmm)?;
        let merge = MergeOptions { epoch: root.epoch, settle: true };
        root.tree = merge_upper(root.tree, upper, &root.spool, &merge)?;
        vmm.stop(1000, None)?;
    }
    progress.step("writing the root image");
    let base = write_base(store, spec, &root)?;
    Ok((base, root.lock))
}

fn write_base(store: &Store, spec: &MachineSpec, root: &Root) -> Result<Pin, Error> {
    let uuid = Digest::of(root.lock.definition.as_bytes()).to_string();
    let mut raw = [0; 16];
    raw.iter_mut().zip(uuid.bytes()).for_each(|(to, from)| *to = from);
    let erofs = ErofsOptions { uuid: raw, build_time: root.epoch };
    base::write(store, &BaseParts { spec, tree: &root.tree, erofs, lock: &root.lock })
}

/// The lock with the finished root's digest, compared with what an old lock promised.
fn recorded(mut lock: Lock, old: Option<&Lock>, base: &Pin, progress: &dyn Progress) -> Result<Lock, Error> {
    let file = base.open()?;
    let root = file.require(SectionKind::RootImage, 0)?.digest.to_string();
    let same_inputs = |old: &&Lock| {
        (&old.definition, &old.guest, &old.packages, &old.sources)
            == (&lock.definition, &lock.guest, &lock.packages, &lock.sources)
    };
    if let Some(promised) = old.filter(same_inputs).and_then(|old| old.root.as_ref())
        && *promised != root
    {
        progress
            .warn("the root image differs from the one in Smolfile.lock: a build step is not reproducible");
    }
    lock.root = Some(root);
    Ok(lock)
}

/// Boots the base, starts the service, waits until it is ready, freezes it into the output.
fn freeze_ready(options: &BuildOptions, base: Pin, progress: &dyn Progress) -> Result<BuildReport, Error> {
    let media = Media::open(base)?;
    progress.step("booting the machine");
    let begun = Instant::now();
    let (vmm, _) = Vmm::boot(&media, None, options.vmm.clone())?;
    if vmm.start_service(&[], None)?.is_some() {
        progress.step("waiting until the service is ready");
    }
    if let Err(e) = vmm.wait_ready() {
        return Err(Error::NotReady { why: e.to_string(), tail: service_tail(&vmm) });
    }
    let cold_ms = begun.elapsed().as_millis() as u64;
    progress.step("freezing");
    let mut writer = MachineFileWriter::create(&options.output)?;
    let freeze = vmm.freeze(&mut writer, SnapshotTarget::Whole)?;
    vmm.machine().end();
    let written = writer.finish()?;
    Ok(BuildReport {
        file: options.output.clone(),
        file_bytes: written.len,
        root: String::new(),
        cold_ms,
        total_ms: 0,
        freeze,
    })
}

/// The last of what the service said; of the kernel when there is nothing.
fn service_tail(vmm: &Vmm) -> String {
    let logs = instance::logs::tail(vmm, 40).unwrap_or_default();
    if logs.is_empty() { vmm.console_tail() } else { logs }
}
