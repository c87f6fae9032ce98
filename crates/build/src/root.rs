//! The definition's root sources to a tree: packages configured, files in, no step run.

use std::fs::File;
use std::path::Path;

use artifact::hash::Digest;
use image::debian::{self, DebianError, PackageSpec, Request};
use image::tree::Time;
use image::{
    DirOptions, FileSource, Limits, MergeOptions, SourceKind, SourceLock, Spool, Tree, add_dir, add_files,
    add_tar, hex, merge_upper,
};
use instance::{Media, io_error};
use store::Pin;

use crate::base::{self, RootSource};
use crate::builtin;
use crate::cache::{Cache, Stage};
use crate::container;
use crate::error::Error;
use crate::job::Job;
use crate::lock::Lock;
use crate::stage;

/// Most bytes that a root's files may have together: 64 GiB.
pub(crate) const SPOOL_LIMIT: u64 = 64 << 30;
/// Time of files that come from a checkout when no package sets an epoch: 2020-01-01.
pub(crate) const EPOCH: Time = Time::from_secs(1_577_836_800);
/// Debian's name of the guest's architecture.
pub(crate) const ARCH: &str = "amd64";

/// A root whose sources are in.
pub(crate) struct Root {
    pub(crate) tree: Tree,
    pub(crate) spool: Spool,
    /// Nothing in the finished image is newer.
    pub(crate) epoch: Time,
    pub(crate) lock: Lock,
    /// Digest of everything that it was made from.
    pub(crate) inputs: Digest,
}

/// Brings all sources in; follows `old` where it is this definition's lock.
pub(crate) fn gather(job: &Job<'_>, old: Option<&Lock>) -> Result<Root, Error> {
    let spool = Spool::new(&job.options.cache, SPOOL_LIMIT)?;
    let mut lock = Lock::new(job.definition.digest());
    if let Some(kernel) = &job.definition.kernel {
        kernel.notes.iter().for_each(|note| job.progress.warn(note));
        lock.own_kernel(kernel.lock());
    }
    let tree = Tree::new(Limits::default());
    let mut root = Root { tree, spool, epoch: EPOCH, lock, inputs: Digest::of(b"") };
    let def = &job.definition.file.root;
    if let Some(packages) = &def.packages {
        from_packages(job, &mut root, packages, old)?;
    } else if let Some(image) = &job.image {
        job.progress.step(&format!("unpacking {}", def.image.as_deref().unwrap_or_default()));
        image.unpack(&mut root.tree, &root.spool, &|line| job.progress.detail(line))?;
        root.lock.image = Some(image.lock());
        root.epoch = container::epoch(&root.tree);
    } else if let Some(dir) = &def.dir {
        job.progress.step(&format!("reading {dir}"));
        let report = add_dir(&mut root.tree, &root.spool, &job.host_path(dir), "", &DirOptions::ROOT)?;
        report.skipped.iter().for_each(|line| job.progress.warn(line));
        note(&mut root, SourceKind::Dir)?;
    } else if let Some(tar) = &def.tar {
        job.progress.step(&format!("unpacking {tar}"));
        let path = job.host_path(tar);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        add_tar(&mut root.tree, &root.spool, file)
            .map_err(|e| job.blame(&["root", "tar"], format!("[root] tar names {}: {e}", path.display())))?;
        note(&mut root, SourceKind::Tar)?;
    } else {
        builtin::fill(&mut root.tree)?;
        note(&mut root, SourceKind::BuiltIn)?;
    }
    files(job, &mut root)?;
    image::furnish(&mut root.tree)?;
    root.inputs = root.lock.inputs()?;
    Ok(root)
}

/// Records what the tree is now made from.
fn note(root: &mut Root, kind: SourceKind) -> Result<(), Error> {
    let digest = root.tree.digest().map_err(io_error("read again", Path::new("the root's files")))?;
    root.lock.sources.push(SourceLock { kind, blake3: hex(&digest) });
    Ok(())
}

fn from_packages(
    job: &Job<'_>,
    root: &mut Root,
    packages: &[String],
    old: Option<&Lock>,
) -> Result<(), Error> {
    let cache = debian::Cache::open(&job.options.cache.join("debian"))?;
    let locked = old.filter(|lock| lock.definition == root.lock.definition && !lock.packages.is_empty());
    root.lock.packages = match locked {
        Some(lock) => lock.packages.clone(),
        None => {
            job.progress.step("resolving packages");
            let specs = packages.iter().map(|p| PackageSpec::parse(p)).collect::<Result<_, _>>();
            specs
                .and_then(|packages| debian::resolve(&Request { packages, arch: ARCH.to_owned() }, &cache))
                .map_err(|e| blame_package(job, packages, e))?
        }
    };
    let key = Cache::key(Stage::Configured, &root.lock.inputs()?, &[]);
    let configured = match job.cache.get(&key) {
        Some(hit) => {
            job.progress
                .step(&format!("{} packages, configured by an earlier build", root.lock.packages.len()));
            root.epoch = hit.epoch;
            hit.pin
        }
        None => {
            let pin = configure(job, root, &cache)?;
            job.cache.put(&key, &pin, root.epoch);
            pin
        }
    };
    // From the image in both cases, so that both give the same root.
    root.tree = base::tree(&configured)?;
    Ok(())
}

/// An error about one package names its line.
fn blame_package(job: &Job<'_>, packages: &[String], error: DebianError) -> Error {
    let name = match &error {
        DebianError::Spec { spec, .. } => spec,
        DebianError::NoPackage { name, .. } | DebianError::NoVersion { name, .. } => name,
        _ => return error.into(),
    };
    let is = |p: &&String| *p == name || p.split_once('=').is_some_and(|(front, _)| front == name);
    match packages.iter().position(|p| is(&p)) {
        Some(at) => job.blame(&["root", "packages", &at.to_string()], format!("packages: {error}")),
        None => error.into(),
    }
}

/// Fetches and unpacks packages and runs their scripts inside a machine; the root they give.
fn configure(job: &Job<'_>, root: &mut Root, cache: &debian::Cache) -> Result<Pin, Error> {
    let packages = &root.lock.packages;
    let bytes: u64 = packages.iter().map(|p| p.size).sum();
    job.progress.step(&format!("fetching {} packages ({} MiB)", packages.len(), bytes >> 20));
    let on_download =
        |count: usize, bytes: u64| job.progress.detail(&format!("{count} packages, {} MiB", bytes >> 20));
    let missing: u64 = packages.iter().filter(|p| !cache.has(p)).map(|p| p.size).sum();
    artifact::space::check(Path::new("the packages"), &job.options.cache, missing)?;
    debian::fetch(packages, ARCH, cache, &on_download)?;
    job.progress.step("unpacking packages");
    let on_package = |name: &str| job.progress.detail(name);
    let unpacked = debian::unpack(packages, cache, &root.spool, Limits::default(), &on_package)?;
    unpacked.warnings.iter().for_each(|line| job.progress.warn(line));
    root.epoch = unpacked.epoch;
    let (spec, erofs) = (job.stage_spec(), job.erofs(&root.lock, root.epoch));
    job.progress.step("writing the first root image");
    let base = job.write_base(&spec, RootSource::Tree(&unpacked.tree, erofs), &root.lock)?;
    job.progress.step("configuring packages inside the machine");
    let vmm = job.boot(&Media::open(base)?, None)?;
    stage::configure(&vmm, &unpacked.configure_script, job.progress)?;
    let tree = take_back(&vmm, &unpacked.tree, &root.spool, root.epoch)?;
    vmm.machine().end();
    job.write_base(&spec, RootSource::Tree(&tree, erofs), &root.lock)
}

/// What the machine made of `tree`, settled.
pub(crate) fn take_back(vmm: &instance::Vmm, tree: &Tree, spool: &Spool, epoch: Time) -> Result<Tree, Error> {
    let upper = stage::export(vmm)?;
    Ok(merge_upper(tree.clone(), upper, spool, &MergeOptions { epoch, settle: true })?)
}

fn files(job: &Job<'_>, root: &mut Root) -> Result<(), Error> {
    let files = &job.definition.file.root.files;
    if files.is_empty() {
        return Ok(());
    }
    job.progress.step("adding files");
    let source =
        |(host, guest): (&String, &String)| FileSource { host: job.host_path(host), guest: guest.clone() };
    let sources: Vec<FileSource> = files.iter().map(source).collect();
    let mut alone = Tree::new(Limits::default());
    // At one time whatever the packages: the same files have the same digest over other packages, too.
    add_files(&mut alone, &root.spool, &sources, &DirOptions::checkout(EPOCH))?;
    let digest = alone.digest().map_err(io_error("read again", Path::new("the definition's files")))?;
    root.lock.sources.push(SourceLock { kind: SourceKind::Files, blake3: hex(&digest) });
    let options = DirOptions::checkout(root.epoch);
    let report = add_files(&mut root.tree, &root.spool, &sources, &options)?;
    report.skipped.iter().for_each(|line| job.progress.warn(line));
    Ok(())
}
