//! How a path is understood: always from the tree's root, never above it.

use super::{Kind, NodeId, ROOT, Tree};

/// Longest name of one entry, in bytes (EROFS and Linux NAME_MAX).
pub const MAX_NAME: usize = 255;
/// Longest path and longest symbolic link, in bytes (Linux PATH_MAX with its NUL).
pub const MAX_PATH: usize = 4095;
/// Symbolic links followed before a path counts as a loop (what Linux allows).
const MAX_HOPS: u32 = 40;

/// What is wrong with a path, in the words of an error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("it names the root itself")]
    Root,
    #[error("it has a `..` component")]
    DotDot,
    #[error("it is no name of an entry, or is there twice")]
    Name,
    #[error("it has a NUL byte")]
    Nul,
    #[error("it is longer than {MAX_PATH} bytes or has a name longer than {MAX_NAME}")]
    TooLong,
    #[error("a component of it is not a directory")]
    NotADirectory,
    #[error("it does not exist")]
    NotFound,
    #[error("it passes more than {MAX_HOPS} symbolic links")]
    Loop,
}

/// The components of an archive's path: `./a//b/` is a, b. A `..` is refused: no honest
/// archive of a root has one.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.len() > MAX_PATH {
        return Err(PathError::TooLong);
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(PathError::DotDot),
            _ if name.contains(&0) => return Err(PathError::Nul),
            _ if name.len() > MAX_NAME => return Err(PathError::TooLong),
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// A path in the one spelling that walks give: `a/b` for `/./a//b/`.
pub(crate) fn normal(path: &[u8]) -> Option<Vec<u8>> {
    Some(components(path).ok()?.join(&b'/'))
}

/// Whether the last component's symbolic link is followed too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Follow,
    Keep,
}

impl Tree {
    /// The node at `path`; symbolic links on the way are followed inside the tree, a last one
    /// is not.
    pub fn lookup(&self, path: impl AsRef<[u8]>) -> Option<NodeId> {
        let names = components(path.as_ref()).ok()?;
        self.resolve(ROOT, &names, Last::Keep).ok()
    }

    /// The node at `path` with every symbolic link followed inside the tree.
    pub fn lookup_follow(&self, path: impl AsRef<[u8]>) -> Option<NodeId> {
        let names = components(path.as_ref()).ok()?;
        self.resolve(ROOT, &names, Last::Follow).ok()
    }

    /// The directory that really holds `path`'s last name, and that name. None where the
    /// directory is not there, or for the root.
    pub(crate) fn locate<'a>(&self, path: &'a [u8]) -> Option<(NodeId, &'a [u8])> {
        let names = components(path).ok()?;
        let (name, parents) = names.split_last()?;
        Some((self.resolve(ROOT, parents, Last::Follow).ok()?, name))
    }

    /// Walks `names` from directory `from`, as a process would that is chrooted to the tree.
    pub(super) fn resolve(&self, from: NodeId, names: &[&[u8]], last: Last) -> Result<NodeId, PathError> {
        // What is still to be walked, the next name at the end.
        let mut rest: Vec<&[u8]> = names.iter().rev().copied().collect();
        let mut at = from;
        let mut hops = 0;
        while let Some(name) = rest.pop() {
            let node = self.get(at).ok_or(PathError::NotFound)?;
            let Kind::Dir(entries) = &node.kind else {
                return Err(PathError::NotADirectory);
            };
            if name == b".." {
                at = node.parent; // the root's parent is the root
                continue;
            }
            let next = *entries.get(name).ok_or(PathError::NotFound)?;
            let follow = !rest.is_empty() || last == Last::Follow;
            match self.get(next).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) if follow => {
                    hops += 1;
                    if hops > MAX_HOPS {
                        return Err(PathError::Loop);
                    }
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    rest.extend(
                        target.split(|b| *b == b'/').rev().filter(|name| !name.is_empty() && *name != b"."),
                    );
                }
                _ => at = next,
            }
        }
        Ok(at)
    }
}
