//! One build: what every part of it needs.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use artifact::hash::Digest;
use image::ErofsOptions;
use image::oci::Image;
use image::tree::Time;
use instance::{Media, Vmm, io_error};
use spec::{DefinitionError, MachineSpec};
use store::{Pin, Store};

use crate::base::{self, BaseParts, RootSource};
use crate::cache::Cache;
use crate::check::Definition;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::lock::Lock;
use crate::progress::Progress;
use crate::run::BuildOptions;

pub(crate) struct Job<'a> {
    pub(crate) options: &'a BuildOptions,
    pub(crate) store: &'a Store,
    pub(crate) cache: Cache<'a>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) definition: Definition,
    /// What `[root] image` names.
    pub(crate) image: Option<Image>,
    /// The definition's own kernel, packed.
    kernel: Option<Vec<u8>>,
    /// Objects that the build made on its way.
    made: RefCell<Vec<Digest>>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(
        options: &'a BuildOptions,
        store: &'a Store,
        progress: &'a dyn Progress,
        mut definition: Definition,
        image: Option<Image>,
    ) -> Result<Self, Error> {
        if let Some(image) = &image {
            definition.spec = definition.spec.over_image(image.defaults().clone());
        }
        let pack = |kernel: &std::sync::Arc<Kernel>| kernel.packed();
        let kernel = definition.kernel.as_ref().map(pack).transpose();
        let kernel = kernel.map_err(io_error("pack", Path::new("the kernel")))?;
        let cache = Cache::open(&options.cache, store, !options.no_cache)?;
        Ok(Self { options, store, cache, progress, definition, image, kernel, made: RefCell::default() })
    }

    /// Where the definition's host paths start.
    pub(crate) fn dir(&self) -> &Path {
        &self.definition.dir
    }

    /// The file to write.
    pub(crate) fn output(&self) -> PathBuf {
        let named = || PathBuf::from(format!("{}.smolmachine", self.definition.spec.name));
        self.options.output.clone().unwrap_or_else(named)
    }

    pub(crate) fn host_path(&self, path: &str) -> PathBuf {
        self.dir().join(path)
    }

    /// The machine in which packages are configured and steps are run: it has no service.
    pub(crate) fn stage_spec(&self) -> MachineSpec {
        let whole = self.definition.spec.clone();
        MachineSpec { service: None, ready: None, hooks: spec::Hooks::default(), ..whole }
    }

    /// Writes a base; it goes when the build ends unless the cache or a name keeps it.
    pub(crate) fn write_base(
        &self,
        spec: &MachineSpec,
        root: RootSource<'_>,
        lock: &Lock,
    ) -> Result<Pin, Error> {
        let pin = base::write(self.store, &BaseParts { spec, root, kernel: self.kernel.as_deref(), lock })?;
        self.made.borrow_mut().push(pin.id());
        Ok(pin)
    }

    /// Writes another object.
    pub(crate) fn write_object(
        &self,
        fill: impl FnOnce(&mut artifact::MachineFileWriter) -> Result<(), Error>,
    ) -> Result<Pin, Error> {
        let mut object = self.store.begin_object(None)?;
        fill(&mut object.writer)?;
        let pin = object.finish()?;
        self.made.borrow_mut().push(pin.id());
        Ok(pin)
    }

    pub(crate) fn erofs(&self, lock: &Lock, epoch: Time) -> ErofsOptions {
        let uuid = Digest::of(lock.definition.as_bytes()).to_string();
        let mut raw = [0; 16];
        raw.iter_mut().zip(uuid.bytes()).for_each(|(to, from)| *to = from);
        ErofsOptions { uuid: raw, build_time: epoch }
    }

    /// Boots a base, with its own size and what it needs to be this definition's.
    pub(crate) fn boot(&self, media: &Media, disk: Option<&artifact::MachineFile>) -> Result<Vmm, Error> {
        let (vmm, _) = Vmm::boot(media, disk, self.options.vmm.clone())?;
        Ok(vmm)
    }

    /// An error about what `path` leads to in the definition.
    pub(crate) fn blame(&self, path: &[&str], what: String) -> Error {
        let source = DefinitionError::placed(&self.definition.text, path, what);
        Error::Definition { path: self.options.smolfile.clone(), source }
    }

    /// Removes what was made on the way and is not wanted any more, and the oldest of the cache.
    pub(crate) fn clean(&self) {
        self.cache.discard(&self.made.take());
        self.cache.trim();
    }
}
