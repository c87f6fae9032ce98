//! Where renamed directories were.
//!
//! An overlay's redirect is a path from the root (`/old/place`), or one name: then the directory
//! stayed in its parent, which may itself have been renamed. Either way it speaks of the lower
//! layer's paths.

use std::collections::BTreeMap;

use crate::tree::normal;

/// Old paths by new ones, of directories that were renamed themselves.
#[derive(Default)]
pub struct Moved {
    origins: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Moved {
    /// Notes that the directory now at `path` is redirected to `to`; gives its old path. None when
    /// one of them is no path.
    pub fn add(&mut self, path: &[u8], to: &[u8]) -> Option<Vec<u8>> {
        let path = normal(path)?;
        let origin = match to.strip_prefix(b"/") {
            Some(absolute) => normal(absolute)?,
            None if to.contains(&b'/') => return None,
            None => {
                let parent = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
                normal(&[&self.origin(parent), &b"/"[..], to].concat())?
            }
        };
        self.origins.insert(path, origin.clone());
        Some(origin)
    }

    /// Where the directory now at `path` was: by the nearest renamed directory above it.
    fn origin(&self, path: &[u8]) -> Vec<u8> {
        let mut end = path.len();
        loop {
            if let Some(origin) = self.origins.get(&path[..end]) {
                return [origin, &path[end..]].concat();
            }
            match path[..end].iter().rposition(|b| *b == b'/') {
                Some(at) => end = at,
                None => return path.to_vec(),
            }
        }
    }
}
