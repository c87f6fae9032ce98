//! The definition's root sources to a tree.

use std::fs::File;
use std::path::{Path, PathBuf};

use image::debian::{self, Cache, PackageSpec, Request};
use image::tree::Time;
use image::{
    DirOptions, FileSource, Limits, SourceKind, SourceLock, Spool, Tree, add_dir, add_files, add_tar, hex,
};
use spec::RootDef;

use crate::builtin;
use crate::error::{Error, io_error};
use crate::lock::Lock;
use crate::progress::Progress;

/// Most bytes that a root's files may have together: 64 GiB.
const SPOOL_LIMIT: u64 = 64 << 30;
/// Time of files that come from a checkout when no package sets an epoch: 2020-01-01.
const EPOCH: Time = Time::from_secs(1_577_836_800);

/// A root whose sources are in.
pub(crate) struct Root {
    pub(crate) tree: Tree,
    pub(crate) spool: Spool,
    /// Nothing in the finished image is newer.
    pub(crate) epoch: Time,
    /// To be run inside the machine before everything else.
    pub(crate) configure: Option<String>,
    pub(crate) lock: Lock,
}

/// Where to look and keep.
pub(crate) struct Places<'a> {
    /// Directory of the Smolfile: host paths are relative to it.
    pub(crate) dir: &'a Path,
    pub(crate) cache: &'a Path,
    /// A lock to follow, when it belongs to this definition.
    pub(crate) lock: Option<&'a Lock>,
}

/// Brings all sources in.
pub(crate) fn gather(
    def: &RootDef,
    definition: String,
    places: &Places<'_>,
    progress: &dyn Progress,
) -> Result<Root, Error> {
    let spool = Spool::new(places.cache, SPOOL_LIMIT)?;
    let lock = Lock::new(definition);
    let mut root = Root { tree: Tree::new(Limits::default()), spool, epoch: EPOCH, configure: None, lock };
    if let Some(packages) = &def.packages {
        from_packages(&mut root, packages, places, progress)?;
    } else if let Some(dir) = &def.dir {
        progress.step(&format!("reading {dir}"));
        let host = places.dir.join(dir);
        let report = add_dir(&mut root.tree, &root.spool, &host, "", &DirOptions::ROOT)?;
        report.skipped.iter().for_each(|line| progress.warn(line));
        note(&mut root, SourceKind::Dir)?;
    } else if let Some(tar) = &def.tar {
        progress.step(&format!("unpacking {tar}"));
        let path = places.dir.join(tar);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        add_tar(&mut root.tree, &root.spool, file)?;
        note(&mut root, SourceKind::Tar)?;
    } else {
        builtin::fill(&mut root.tree)?;
    }
    files(&mut root, def, places, progress)?;
    Ok(root)
}

/// Records what the tree is now made from.
fn note(root: &mut Root, kind: SourceKind) -> Result<(), Error> {
    let digest = root.tree.digest().map_err(io_error("read again", Path::new("the root's files")))?;
    root.lock.sources.push(SourceLock { kind, blake3: hex(&digest) });
    Ok(())
}

fn from_packages(
    root: &mut Root,
    packages: &[String],
    places: &Places<'_>,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let cache = Cache::open(&places.cache.join("debian"))?;
    let arch = "amd64".to_owned();
    let locked =
        places.lock.filter(|lock| lock.definition == root.lock.definition && !lock.packages.is_empty());
    root.lock.packages = match locked {
        Some(lock) => lock.packages.clone(),
        None => {
            progress.step("resolving packages");
            let specs = packages.iter().map(|p| PackageSpec::parse(p)).collect::<Result<_, _>>()?;
            debian::resolve(&Request { packages: specs, arch: arch.clone() }, &cache)?
        }
    };
    let bytes: u64 = root.lock.packages.iter().map(|p| p.size).sum();
    progress.step(&format!("fetching {} packages ({} MiB)", root.lock.packages.len(), bytes >> 20));
    let on_download =
        |count: usize, bytes: u64| progress.detail(&format!("{count} packages, {} MiB", bytes >> 20));
    debian::fetch(&root.lock.packages, &arch, &cache, &on_download)?;
    progress.step("unpacking packages");
    let on_package = |name: &str| progress.detail(name);
    let unpacked = debian::unpack(&root.lock.packages, &cache, &root.spool, Limits::default(), &on_package)?;
    unpacked.warnings.iter().for_each(|line| progress.warn(line));
    root.tree = unpacked.tree;
    root.epoch = unpacked.epoch;
    root.configure = Some(unpacked.configure_script);
    Ok(())
}

fn files(root: &mut Root, def: &RootDef, places: &Places<'_>, progress: &dyn Progress) -> Result<(), Error> {
    if def.files.is_empty() {
        return Ok(());
    }
    progress.step("adding files");
    let source = |(host, guest): (&String, &String)| FileSource {
        host: PathBuf::from(places.dir).join(host),
        guest: guest.clone(),
    };
    let sources: Vec<FileSource> = def.files.iter().map(source).collect();
    let mut alone = Tree::new(Limits::default());
    let options = DirOptions::checkout(root.epoch);
    add_files(&mut alone, &root.spool, &sources, &options)?;
    let digest = alone.digest().map_err(io_error("read again", Path::new("the definition's files")))?;
    root.lock.sources.push(SourceLock { kind: SourceKind::Files, blake3: hex(&digest) });
    let report = add_files(&mut root.tree, &root.spool, &sources, &options)?;
    report.skipped.iter().for_each(|line| progress.warn(line));
    Ok(())
}
