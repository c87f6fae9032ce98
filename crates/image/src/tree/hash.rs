//! One digest for a whole tree, so that a lock can say what a source was.

use std::collections::HashMap;
use std::io;

use super::{Kind, Meta, NodeId, Tree};
use crate::content::Digest;

impl Tree {
    /// BLAKE3 over every path, its metadata and its content, in walk order. Two trees with the
    /// same digest write the same image.
    ///
    /// Each entry is written as: length and bytes of the path; a type byte; mode, uid, gid,
    /// mtime (or, for a further name of an inode, the number of the entry that named it first);
    /// attributes; length and digest of the content or the target or the device number. All
    /// numbers little-endian.
    ///
    /// # Errors
    /// Reading content whose digest is not known yet.
    pub fn digest(&self) -> io::Result<Digest> {
        let mut hasher = blake3::Hasher::new_derive_key("smolvm root tree 1");
        let mut first: HashMap<NodeId, u64> = HashMap::new();
        for (number, (path, id)) in self.walk().enumerate() {
            let Some(node) = self.get(id) else { continue };
            put_bytes(&mut hasher, &path);
            if let Some(earlier) = first.get(&id) {
                hasher.update(b"L").update(&earlier.to_le_bytes());
                continue;
            }
            if node.names > 1 {
                first.insert(id, number as u64);
            }
            put_meta(&mut hasher, &node.meta);
            match &node.kind {
                Kind::Dir(_) => hasher.update(b"d"),
                Kind::File(content) => {
                    hasher.update(b"f").update(&content.len().to_le_bytes());
                    hasher.update(&content.digest()?)
                }
                Kind::Symlink(target) => {
                    hasher.update(b"l");
                    put_bytes(&mut hasher, target)
                }
                Kind::CharDevice(d) | Kind::BlockDevice(d) => {
                    let char = matches!(node.kind, Kind::CharDevice(_));
                    hasher.update(if char { b"c" } else { b"b" });
                    hasher.update(&d.major.to_le_bytes()).update(&d.minor.to_le_bytes())
                }
                Kind::Fifo => hasher.update(b"p"),
                Kind::Socket => hasher.update(b"s"),
            };
        }
        Ok(*hasher.finalize().as_bytes())
    }
}

fn put_meta(hasher: &mut blake3::Hasher, meta: &Meta) {
    hasher
        .update(&meta.mode.to_le_bytes())
        .update(&meta.uid.to_le_bytes())
        .update(&meta.gid.to_le_bytes())
        .update(&meta.mtime.secs.to_le_bytes())
        .update(&meta.mtime.nanos.to_le_bytes())
        .update(&(meta.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &meta.xattrs {
        put_bytes(hasher, name);
        put_bytes(hasher, value);
    }
}

fn put_bytes<'a>(hasher: &'a mut blake3::Hasher, bytes: &[u8]) -> &'a mut blake3::Hasher {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes)
}
