//! [`Image`]: from a name to a root.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use spec::ImageDefaults;

use super::cache::BlobCache;
use super::checked::{Checked, digest_of, sha256_hex, verify};
use super::document::{Document, choose, defaults, parse_config, parse_document};
use super::layer::{Applier, with_end};
use super::name::ImageName;
use super::origin::archive::DockerArchive;
use super::origin::layout::{Layout, SkopeoDir};
use super::origin::registry::{Registry, RegistryOptions};
use super::origin::{Origin, read_document};
use super::{MAX_DOCUMENT, OciError, Problem, document_problem};
use crate::ArchiveError;
use crate::archive::{EXPANDED, RATIO, decompress};
use crate::content::Spool;
use crate::lock::ImageLock;
use crate::tree::{Item, Meta, OnSymlink, Tree};

/// Indexes in indexes that are followed.
const DEPTH: usize = 4;
/// Blobs transferred at a time.
const TRANSFERS: usize = 4;
/// Tries of one blob's transfer.
const TRIES: usize = 3;
/// Where things are kept and how registries are asked.
#[derive(Clone, Debug)]
pub struct OciOptions {
    /// The user's cache directory; images have `oci/` in it.
    pub cache: PathBuf,
    pub registry: RegistryOptions,
}

/// An image whose manifest and configuration are known and checked.
pub struct Image {
    name: String,
    origin: Box<dyn Origin + Send>,
    cache: BlobCache,
    digest: String,
    manifest: ImageManifest,
    config: ImageConfiguration,
    defaults: ImageDefaults,
}

impl Image {
    /// Finds the image for linux/amd64. With `pinned`, the manifest digest of a lock, that one
    /// and no other; what of it is in the cache is not asked for again.
    ///
    /// # Errors
    /// [`OciError`].
    pub fn open(name: &ImageName, options: &OciOptions, pinned: Option<&str>) -> Result<Self, OciError> {
        let told = |problem: Problem| OciError::Image { image: name.to_string(), problem: problem.into() };
        Self::find(name, options, pinned).map_err(told)
    }

    fn find(name: &ImageName, options: &OciOptions, pinned: Option<&str>) -> Result<Self, Problem> {
        let dir = options.cache.join("oci");
        let cache = BlobCache::open(&dir)?;
        let origin: Box<dyn Origin + Send> = match name {
            ImageName::Layout { dir, tag } => Box::new(Layout { dir: dir.clone(), tag: tag.clone() }),
            ImageName::SkopeoDir { dir } => Box::new(SkopeoDir { dir: dir.clone() }),
            ImageName::DockerArchive { file, name } => {
                Box::new(DockerArchive::open(file, name.as_deref(), &dir)?)
            }
            ImageName::Registry(reference) => Box::new(Registry::new(reference, &options.registry)),
        };
        let kept = !origin.is_local();
        let mut bytes = match pinned.filter(|_| kept).and_then(|digest| cache.document(digest)) {
            Some(bytes) => bytes,
            None => origin.find(pinned)?,
        };
        if let Some(digest) = pinned {
            verify_locked(&bytes, digest)?;
        }
        let mut depth = 0;
        let manifest = loop {
            match parse_document(&bytes)? {
                Document::Manifest(manifest) => break *manifest,
                Document::Index(_) if depth == DEPTH => {
                    return Err(document_problem("index", "indexes lead to indexes without end"));
                }
                Document::Index(index) => bytes = chosen(origin.as_ref(), choose(index.manifests())?)?,
            }
            depth += 1;
        };
        let config = configuration(origin.as_ref(), &cache, manifest.config(), kept)?;
        let config = parse_config(&config, manifest.layers().len())?;
        let digest = digest_of(&bytes);
        if kept {
            cache.keep_document(&digest, &bytes)?;
        }
        let defaults = defaults(&config)?;
        Ok(Self { name: name.to_string(), origin, cache, digest, manifest, config, defaults })
    }

    /// The manifest's digest, `sha256:…`: what the image is known by.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How the image wants to run.
    pub fn defaults(&self) -> &ImageDefaults {
        &self.defaults
    }

    /// What stands in `Smolfile.lock`.
    pub fn lock(&self) -> ImageLock {
        ImageLock {
            manifest: self.digest.clone(),
            config: self.manifest.config().digest().to_string(),
            layers: self.manifest.layers().iter().map(|layer| layer.digest().to_string()).collect(),
        }
    }

    /// Puts the image's files into the empty `tree`. `on_step` hears, from several threads, what
    /// is being done.
    ///
    /// # Errors
    /// [`OciError`], with the layer where it is one's.
    pub fn unpack(
        &self,
        tree: &mut Tree,
        spool: &Spool,
        on_step: &(dyn Fn(&str) + Sync),
    ) -> Result<(), OciError> {
        if !self.origin.is_local() {
            self.transfer(on_step)?;
        }
        let count = self.manifest.layers().len();
        let mut applier = Applier::new(tree, spool);
        for (i, layer) in self.manifest.layers().iter().enumerate() {
            on_step(&format!("unpacking layer {} of {count} ({} KiB)", i + 1, layer.size() >> 10));
            let wanted = &self.config.rootfs().diff_ids()[i]; // as many as layers: parse_config
            self.apply(layer, wanted, &mut applier).map_err(|problem| self.of_layer(i, problem))?;
        }
        self.furnish(tree)
            .map_err(|problem| OciError::Image { image: self.name.clone(), problem: problem.into() })
    }

    fn of_layer(&self, i: usize, problem: Problem) -> OciError {
        let layers = self.manifest.layers();
        let digest = layers.get(i).map(|layer| layer.digest().to_string()).unwrap_or_default();
        OciError::Layer {
            image: self.name.clone(),
            number: i + 1,
            count: layers.len(),
            digest,
            problem: problem.into(),
        }
    }

    /// Brings the layers that are not in the cache there, several at a time.
    fn transfer(&self, on_step: &(dyn Fn(&str) + Sync)) -> Result<(), OciError> {
        let layers = self.manifest.layers();
        let mut missing = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            // An image may have one layer twice.
            let again = layers[..i].iter().any(|earlier| earlier.digest() == layer.digest());
            if !again && self.cache.get(layer).map_err(|p| self.of_layer(i, p))?.is_none() {
                missing.push(i);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let bytes = missing.iter().fold(0u64, |sum, i| sum.saturating_add(layers[*i].size()));
        self.cache.room(bytes).map_err(|p| self.of_layer(missing[0], p))?;
        on_step(&format!("transferring {} of {} layers ({} KiB)", missing.len(), layers.len(), bytes >> 10));
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some(&i) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let layer = &layers[i];
                match self.fetch(layer) {
                    Ok(()) => on_step(&format!(
                        "layer {} of {} is here ({} KiB)",
                        i + 1,
                        layers.len(),
                        layer.size() >> 10
                    )),
                    Err(problem) => {
                        next.store(missing.len(), Ordering::Relaxed); // nobody begins another
                        let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        failure.get_or_insert((i, problem));
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..TRANSFERS.min(missing.len()) {
                scope.spawn(work);
            }
        });
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((i, problem)) => Err(self.of_layer(i, problem)),
            None => Ok(()),
        }
    }

    fn fetch(&self, layer: &Descriptor) -> Result<(), Problem> {
        let mut tries = 0;
        loop {
            tries += 1;
            let done = self.origin.blob(layer).and_then(|from| self.cache.put(layer, from));
            match done {
                // A line that broke; other bytes than announced would be so again.
                Err(Problem::Size { .. } | Problem::Archive(ArchiveError::Io(_))) if tries < TRIES => {}
                done => return done,
            }
        }
    }

    /// Applies one layer, checking both what was transferred and what it expands to.
    fn apply(&self, layer: &Descriptor, diff_id: &str, applier: &mut Applier<'_>) -> Result<(), Problem> {
        let cached = if self.origin.is_local() { None } else { self.cache.get(layer)? };
        let from: Box<dyn std::io::Read + Send + '_> = match cached {
            Some(file) => Box::new(file),
            None => self.origin.blob(layer)?,
        };
        let mut packed = Checked::new(from, layer.size());
        let limit = EXPANDED.max(layer.size().saturating_mul(RATIO));
        let mut plain = Checked::new(decompress(&mut packed)?, limit);
        let applied = applier.apply(with_end(&mut plain));
        let expanded =
            if applied.is_ok() { plain.digest().map_err(ArchiveError::Io) } else { Ok(String::new()) };
        let exceeded = plain.exceeded();
        drop(plain);
        // What is wrong with the transferred bytes explains everything that follows from them.
        let compared = packed.compare("its bytes", layer, "");
        if let Err(problem @ (Problem::Digest { .. } | Problem::Size { .. })) = compared {
            self.cache.forget(layer);
            return Err(problem);
        }
        if exceeded {
            return Err(Problem::Bomb { limit, packed: layer.size() });
        }
        applied?;
        compared?;
        let found = expanded?;
        match found == diff_id {
            true => Ok(()),
            false => Err(Problem::Digest {
                what: "what it expands to",
                wanted: super::document::shown(diff_id),
                found,
                advice: "; the image's configuration belongs to other layers",
            }),
        }
    }

    /// What container runtimes give an image that does not have it: its working directory, and what is in any /etc.
    fn furnish(&self, tree: &mut Tree) -> Result<(), Problem> {
        if let Some(dir) = &self.defaults.workdir
            && tree.lookup_follow(dir).is_none()
        {
            tree.insert(dir, Item::Dir, Meta::root_owned(0o755), OnSymlink::Keep)?;
        }
        Ok(crate::furnish(tree)?)
    }
}

fn verify_locked(bytes: &[u8], digest: &str) -> Result<(), Problem> {
    let found = digest_of(bytes);
    if found == digest {
        return Ok(());
    }
    let advice = "; `smolvm build --update` takes what is there now";
    Err(Problem::Digest { what: "its manifest", wanted: digest.to_owned(), found, advice })
}

/// The manifest that an index names.
fn chosen(origin: &dyn Origin, wanted: &Descriptor) -> Result<Vec<u8>, Problem> {
    sha256_hex(wanted.digest())?;
    let bytes = origin.document(wanted)?;
    if bytes.len() as u64 != wanted.size() {
        return Err(Problem::Size { what: "its manifest", wanted: wanted.size(), found: bytes.len() as u64 });
    }
    verify("its manifest", &bytes, wanted.digest().as_ref())?;
    Ok(bytes)
}

fn configuration(
    origin: &dyn Origin,
    cache: &BlobCache,
    wanted: &Descriptor,
    keep: bool,
) -> Result<Vec<u8>, Problem> {
    if wanted.size() > MAX_DOCUMENT {
        return Err(document_problem(
            "configuration",
            format!("it is larger than {} MiB", MAX_DOCUMENT >> 20),
        ));
    }
    if keep && let Some(bytes) = cache.document(wanted.digest().as_ref()) {
        return Ok(bytes);
    }
    let bytes = read_document("configuration", origin.blob(wanted)?)?;
    if bytes.len() as u64 != wanted.size() {
        return Err(Problem::Size {
            what: "its configuration",
            wanted: wanted.size(),
            found: bytes.len() as u64,
        });
    }
    verify("its configuration", &bytes, wanted.digest().as_ref())?;
    if keep {
        cache.keep_document(wanted.digest().as_ref(), &bytes)?;
    }
    Ok(bytes)
}
