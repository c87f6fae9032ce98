//! Container images, and plain roots without a definition, as machines.
//!
//! `smolvm run IMAGE` is a build without steps or snapshots: the base alone, kept in the store
//! under a name made of what it was made from, so that the same image is unpacked once.

use std::io::Read;
use std::path::Path;

use artifact::hash::Digest;
use image::oci::{Image, ImageName, OciOptions};
use image::tree::Time;
use image::{DirOptions, ErofsOptions, Limits, SourceKind, SourceLock, Spool, Tree, add_dir, add_tar, hex};
use instance::{built_in_spec, io_error};
use spec::{ImageDefaults, MachineSpec};
use store::{Origin, Pin, Store};

use crate::base::{self, BaseParts, RootSource};
use crate::downloads;
use crate::error::Error;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::root::{EPOCH, SPOOL_LIMIT};

/// Memory of a machine that no definition describes.
const MEMORY: u64 = 512 << 20;
/// No file of an image is newer, whatever its layers say: 2100-01-01.
const LATEST: Time = Time::from_secs(4_102_444_800);

/// A root that is no image.
pub enum PlainRoot<'a> {
    /// A directory of the host.
    Dir(&'a Path),
    /// A tar, compressed or not.
    Tar(Box<dyn Read + Send + 'a>),
}

/// The machine that a container image is: its base, from the store where it was made before.
///
/// # Errors
/// [`Error`]: the image's, with its name and layer.
pub fn image_base(
    store: &Store,
    name: &ImageName,
    oci: &OciOptions,
    progress: &dyn Progress,
) -> Result<Pin, Error> {
    let _in_use = downloads::in_use(&oci.cache)?;
    progress.step(&format!("looking at {name}"));
    let image = Image::open(name, oci, None)?;
    let tag = tag("oci", image.digest().as_bytes());
    if let Some(pin) = known(store, &tag)? {
        return Ok(pin);
    }
    progress.step(&format!("unpacking {name}"));
    let spool = Spool::new(&oci.cache, SPOOL_LIMIT)?;
    let mut tree = Tree::new(Limits::default());
    image.unpack(&mut tree, &spool, &|line| progress.detail(line))?;
    let mut lock = Lock::new("image".into());
    lock.image = Some(image.lock());
    let spec = spec(&name.machine_name()).over_image(image.defaults().clone());
    write(store, &tag, &spec, &tree, &lock)
}

/// The machine that a directory or a tar is, in the same way.
///
/// # Errors
/// [`Error`]: what cannot be read.
pub fn plain_base(
    store: &Store,
    root: PlainRoot<'_>,
    cache: &Path,
    progress: &dyn Progress,
) -> Result<Pin, Error> {
    let spool = Spool::new(cache, SPOOL_LIMIT)?;
    let mut tree = Tree::new(Limits::default());
    let kind = match root {
        PlainRoot::Dir(dir) => {
            progress.step(&format!("reading {}", dir.display()));
            let report = add_dir(&mut tree, &spool, dir, "", &DirOptions::ROOT)?;
            report.skipped.iter().for_each(|line| progress.warn(line));
            SourceKind::Dir
        }
        PlainRoot::Tar(from) => {
            progress.step("unpacking standard input");
            add_tar(&mut tree, &spool, from)?;
            SourceKind::Tar
        }
    };
    let digest = tree.digest().map_err(io_error("read again", Path::new("the root's files")))?;
    image::furnish(&mut tree)?;
    let tag = tag("root", &digest);
    if let Some(pin) = known(store, &tag)? {
        return Ok(pin);
    }
    let mut lock = Lock::new("root".into());
    lock.sources.push(SourceLock { kind, blake3: hex(&digest) });
    // A root says nothing of itself: commands run in it as in an image that says nothing.
    let spec = spec("root").over_image(ImageDefaults::default());
    write(store, &tag, &spec, &tree, &lock)
}

/// The newest file's time: nothing in the finished root shall be newer.
pub(crate) fn epoch(tree: &Tree) -> Time {
    let times = tree.walk().filter_map(|(_, id)| Some(tree.get(id)?.meta.mtime));
    times.max().unwrap_or(EPOCH).min(LATEST)
}

fn spec(name: &str) -> MachineSpec {
    MachineSpec { name: name.to_owned(), memory: MEMORY, ..built_in_spec() }
}

/// The name in the store: of the source and of the parts that smolvm adds.
fn tag(word: &str, source: &[u8]) -> String {
    let mut of = source.to_vec();
    of.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
    of.extend_from_slice(format!("\nfurnished={}", image::FURNISHED).as_bytes());
    assets::build_info().iter().for_each(|(k, v)| of.extend_from_slice(format!("\n{k}={v}").as_bytes()));
    let digest = Digest::of(&of).to_string();
    format!("{word}-{}", digest.get(..24).unwrap_or_default())
}

fn known(store: &Store, tag: &str) -> Result<Option<Pin>, Error> {
    Ok(store.resolve(tag)?.and_then(|found| store.pin(&found.id).ok()))
}

fn write(store: &Store, tag: &str, spec: &MachineSpec, tree: &Tree, lock: &Lock) -> Result<Pin, Error> {
    let erofs = ErofsOptions { uuid: *b"smolvm-container", build_time: epoch(tree) };
    let root = RootSource::Tree(tree, erofs);
    let pin = base::write(store, &BaseParts { spec, root, kernel: None, lock })?;
    store.tag(tag, &pin.id(), Origin::Oci)?;
    Ok(pin)
}
