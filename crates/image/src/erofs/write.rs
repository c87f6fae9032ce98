//! Writes a planned image, front to back.

use std::io::{self, Write};

use super::format::{BLOCK, Inode, Superblock, type_of};
use super::plan::{Place, Plan, PlanError, Run};
use super::{dirs, xattr};
use crate::content::Content;
use crate::tree::{Kind, NodeId, ROOT, Time, Tree, shown};

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// What the tree does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErofsOptions {
    pub uuid: [u8; 16],
    /// The image's own time. Inodes with exactly this time take half the room.
    pub build_time: Time,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Bytes, a multiple of 4096.
    pub size: u64,
    pub inodes: u64,
    /// Bytes before the file data: superblock, inodes, directories, inline data.
    pub meta_bytes: u64,
    /// Bytes saved because files with equal content share their blocks.
    pub shared_bytes: u64,
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    #[error("writing the root image failed: {0}; is the disk full?")]
    Write(io::Error),
    #[error("the root image: {0}")]
    NoRoom(io::Error),
    #[error("reading the content of `{path}` for the root image failed: {source}")]
    Content { path: String, source: io::Error },
    #[error(
        "`{path}` has the extended attribute `{name}`, which an EROFS image cannot hold; remove it from the source"
    )]
    Xattr { path: String, name: String },
    #[error("the root would be larger than the 16 TiB that an EROFS image holds")]
    TooLarge,
    #[error("the tree's root directory has moved out of reach of the superblock; this is a bug")]
    Root,
}

/// Writes `tree` as an EROFS image. The same tree and options always give the same bytes.
///
/// # Errors
/// Reading the tree's contents, writing `out`, attributes and sizes that the format lacks.
pub fn write_erofs(
    tree: &Tree,
    out: &mut impl Write,
    options: &ErofsOptions,
) -> Result<ImageInfo, ErofsError> {
    write_erofs_where(tree, out, options, |_| Ok(()))
}

/// [`write_erofs`], once `room` has heard how many bytes it will be, and has not refused.
///
/// # Errors
/// As there; [`ErofsError::NoRoom`].
pub fn write_erofs_where(
    tree: &Tree,
    out: &mut impl Write,
    options: &ErofsOptions,
    room: impl FnOnce(u64) -> io::Result<()>,
) -> Result<ImageInfo, ErofsError> {
    let plan = Plan::new(tree, options.build_time).map_err(|e| plan_error(tree, e))?;
    room(plan.blocks * BLOCK).map_err(ErofsError::NoRoom)?;
    let root_nid = u16::try_from(plan.nid(ROOT)).map_err(|_| ErofsError::Root)?;
    let superblock = Superblock {
        root_nid,
        inodes: plan.places.len() as u64,
        build_time: options.build_time.secs,
        build_nanos: options.build_time.nanos,
        blocks: u32::try_from(plan.blocks).map_err(|_| ErofsError::TooLarge)?,
        uuid: options.uuid,
        volume_name: *b"smolvm-root\0\0\0\0\0",
    };
    let mut sink = Sink { out, at: 0 };
    sink.write(&superblock.block())?;
    write_meta(tree, &plan, &mut sink)?;
    for run in &plan.file_runs {
        write_file(tree, run, &mut sink)?;
    }
    sink.pad_to(plan.blocks * BLOCK)?;
    sink.out.flush().map_err(ErofsError::Write)?;
    Ok(ImageInfo {
        size: sink.at,
        inodes: superblock.inodes,
        meta_bytes: plan.data_start * BLOCK,
        shared_bytes: plan.shared,
    })
}

/// Inodes and directory blocks, merged by address.
fn write_meta<W: Write>(tree: &Tree, plan: &Plan, sink: &mut Sink<'_, W>) -> Result<(), ErofsError> {
    let mut runs = plan.dir_runs.iter().peekable();
    for (number, place) in plan.places.iter().enumerate() {
        while let Some(run) = runs.next_if(|run| run.block * BLOCK < place.at) {
            write_dir(tree, plan, run, sink)?;
        }
        sink.pad_to(place.at)?;
        // i_ino only feeds 32-bit stat; counting from 1 keeps it unique.
        sink.write(&inode_bytes(tree, plan, place, number as u32 + 1)?)?;
    }
    for run in runs {
        write_dir(tree, plan, run, sink)?;
    }
    sink.pad_to(plan.data_start * BLOCK)
}

/// An inode with its attributes and what stands behind it.
fn inode_bytes(tree: &Tree, plan: &Plan, place: &Place, ino: u32) -> Result<Vec<u8>, ErofsError> {
    let Some(node) = tree.get(place.id) else {
        return Ok(Vec::new());
    };
    let meta = &node.meta;
    let inode = Inode {
        layout: place.layout,
        xattr_count: place.xattr_count,
        mode: type_of(node.kind()).0 | (meta.mode & 0o7777),
        size: place.size,
        union: place.union,
        ino,
        uid: meta.uid,
        gid: meta.gid,
        mtime: meta.mtime.secs,
        mtime_nanos: meta.mtime.nanos,
        nlink: place.nlink,
    };
    let mut bytes = inode.encode(place.extended);
    let xattrs =
        xattr::encode(&meta.xattrs).map_err(|e| plan_error(tree, PlanError::Xattr(place.id, e.name)))?;
    bytes.extend_from_slice(&xattrs);
    if place.inline == 0 {
        return Ok(bytes);
    }
    match node.kind() {
        Kind::Dir(_) => {
            if let Some(last) = dirs::pack(tree, place.id).last() {
                bytes.extend(dirs::encode(tree, last, |id| plan.nid(id)));
            }
        }
        Kind::Symlink(target) => {
            bytes.extend_from_slice(&target[target.len() - place.inline as usize..]);
        }
        Kind::File(content) => {
            let start = bytes.len();
            bytes.resize(start + place.inline as usize, 0);
            content
                .read_exact_at(&mut bytes[start..], place.size - place.inline)
                .map_err(|source| content_error(tree, place.id, source))?;
        }
        _ => {}
    }
    Ok(bytes)
}

fn write_dir<W: Write>(
    tree: &Tree,
    plan: &Plan,
    run: &Run,
    sink: &mut Sink<'_, W>,
) -> Result<(), ErofsError> {
    let blocks = dirs::pack(tree, run.id);
    for (i, block) in blocks.iter().take(run.blocks as usize).enumerate() {
        sink.pad_to((run.block + i as u64) * BLOCK)?;
        sink.write(&dirs::encode(tree, block, |id| plan.nid(id)))?;
    }
    Ok(())
}

fn write_file<W: Write>(tree: &Tree, run: &Run, sink: &mut Sink<'_, W>) -> Result<(), ErofsError> {
    let target;
    let content = match tree.get(run.id).map(|node| node.kind()) {
        Some(Kind::File(content)) => content,
        Some(Kind::Symlink(bytes)) => {
            target = Content::bytes(&bytes[..]);
            &target
        }
        _ => return Ok(()),
    };
    sink.pad_to(run.block * BLOCK)?;
    let len = content.len().min(run.blocks * BLOCK);
    let mut buf = vec![0; CHUNK.min(len as usize)];
    let mut at = 0;
    while at < len {
        let here = (len - at).min(buf.len() as u64) as usize;
        content.read_exact_at(&mut buf[..here], at).map_err(|source| content_error(tree, run.id, source))?;
        sink.write(&buf[..here])?;
        at += here as u64;
    }
    Ok(())
}

fn content_error(tree: &Tree, id: NodeId, source: io::Error) -> ErofsError {
    ErofsError::Content { path: tree.path_of(id), source }
}

fn plan_error(tree: &Tree, error: PlanError) -> ErofsError {
    match error {
        PlanError::TooLarge => ErofsError::TooLarge,
        PlanError::Xattr(id, name) => ErofsError::Xattr { path: tree.path_of(id), name: shown(&name) },
    }
}

/// A writer that knows where it is.
struct Sink<'a, W> {
    out: &'a mut W,
    at: u64,
}

impl<W: Write> Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        self.out.write_all(bytes).map_err(ErofsError::Write)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, end: u64) -> Result<(), ErofsError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < end {
            let here = (end - self.at).min(ZEROS.len() as u64) as usize;
            self.write(&ZEROS[..here])?;
        }
        Ok(())
    }
}
