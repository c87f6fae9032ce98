//! A base: specification, kernel, initramfs, root image and lock as an object of the store.

use std::io;
use std::sync::Arc;

use artifact::{CopyCheck, MachineFile, SectionHead, SectionKind, space};
use image::{ErofsOptions, FileRange, Limits, Tree, read_erofs, write_erofs_where};
use instance::{BOOT_ZSTD, io_error};
use spec::{MachineSpec, SPEC_VERSION};
use store::{Pin, Store};

use crate::error::Error;
use crate::lock::Lock;

/// Version of raw sections: root image, lock text.
const RAW: u32 = 1;

/// Where a base's root image comes from.
pub(crate) enum RootSource<'a> {
    Tree(&'a Tree, ErofsOptions),
    /// That of another base.
    Base(&'a MachineFile),
}

/// What a base is made of.
pub(crate) struct BaseParts<'a> {
    pub(crate) spec: &'a MachineSpec,
    pub(crate) root: RootSource<'a>,
    /// One zstd frame; smolvm's own kernel when absent.
    pub(crate) kernel: Option<&'a [u8]>,
    pub(crate) lock: &'a Lock,
}

/// Writes a base into the store. The same parts give the same object, bit for bit.
pub(crate) fn write(store: &Store, parts: &BaseParts<'_>) -> Result<Pin, Error> {
    let mut object = store.begin_object(None)?;
    let writer = &mut object.writer;
    let encode = |e: serde_json::Error| Error::Lock { path: "specification".into(), what: e.to_string() };
    let spec = serde_json::to_vec(parts.spec).map_err(encode)?;
    writer.add_bytes(SectionHead::new(SectionKind::Spec, SPEC_VERSION), &spec)?;
    let packed = |kind| SectionHead::new(kind, BOOT_ZSTD);
    let kernel = parts.kernel.unwrap_or(assets::kernel_packed());
    writer.add_bytes(packed(SectionKind::Kernel), kernel)?;
    writer.add_bytes(packed(SectionKind::Initramfs), assets::initramfs_packed())?;
    match &parts.root {
        RootSource::Tree(tree, erofs) => {
            let root = writer.begin(SectionHead::new(SectionKind::RootImage, RAW))?;
            let mut buffered = io::BufWriter::with_capacity(1 << 20, root);
            let room = |bytes| space::check(store.root(), store.root(), bytes).map_err(io::Error::other);
            write_erofs_where(tree, &mut buffered, erofs, room)?;
            let failed = || io_error("write the root image into", store.root());
            buffered.into_inner().map_err(|e| failed()(e.into_error()))?.end()?;
        }
        RootSource::Base(file) => {
            writer.copy_section(file, file.require(SectionKind::RootImage, 0)?, CopyCheck::Trust)?;
        }
    }
    writer.add_bytes(SectionHead::new(SectionKind::Lock, RAW), parts.lock.text()?.as_bytes())?;
    Ok(object.finish()?)
}

/// The root of a base as a tree whose contents stay in the store.
pub(crate) fn tree(base: &Pin) -> Result<Tree, Error> {
    let file = base.open()?;
    let section = file.require(SectionKind::RootImage, 0)?;
    let handle = file.file().try_clone().map_err(io_error("open again", file.path()))?;
    let image = FileRange { file: handle, offset: section.offset, len: section.len };
    Ok(read_erofs(Arc::new(image), Limits::default())?)
}
