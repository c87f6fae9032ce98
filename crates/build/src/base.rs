//! A base: specification, kernel, initramfs, root image and lock as an object of the store.

use std::io::{self, Write};

use artifact::{SectionHead, SectionKind};
use image::{ErofsOptions, Tree, write_erofs};
use spec::{MachineSpec, SPEC_VERSION};
use store::{Pin, Store};

use crate::error::{Error, io_error};
use crate::lock::Lock;

/// Version of raw sections: kernel, initramfs, root image, lock text.
const RAW: u32 = 1;

/// What a base is made of.
pub(crate) struct BaseParts<'a> {
    pub(crate) spec: &'a MachineSpec,
    pub(crate) tree: &'a Tree,
    pub(crate) erofs: ErofsOptions,
    pub(crate) lock: &'a Lock,
}

/// Writes a base into the store. The same parts give the same object, bit for bit.
pub(crate) fn write(store: &Store, parts: &BaseParts<'_>) -> Result<Pin, Error> {
    let mut object = store.begin_object(None)?;
    let writer = &mut object.writer;
    let encode = |e: serde_json::Error| Error::Lock { path: "specification".into(), what: e.to_string() };
    let spec = serde_json::to_vec(parts.spec).map_err(encode)?;
    writer.add_bytes(SectionHead::new(SectionKind::Spec, SPEC_VERSION), &spec)?;
    writer.add_bytes(SectionHead::new(SectionKind::Kernel, RAW), &assets::kernel())?;
    writer.add_bytes(SectionHead::new(SectionKind::Initramfs, RAW), &assets::initramfs())?;
    let root = writer.begin(SectionHead::new(SectionKind::RootImage, RAW))?;
    let mut buffered = io::BufWriter::with_capacity(1 << 20, root);
    write_erofs(parts.tree, &mut buffered, &parts.erofs)?;
    buffered.flush().map_err(io_error("write the root image into", store.root()))?;
    let root = buffered
        .into_inner()
        .map_err(|e| io_error("write the root image into", store.root())(e.into_error()))?;
    root.end()?;
    writer.add_bytes(SectionHead::new(SectionKind::Lock, RAW), parts.lock.text()?.as_bytes())?;
    Ok(object.finish()?)
}
