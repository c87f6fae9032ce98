//! Sources of a root on the host: a directory, single files, a tar. Debian packages are in
//! `debian/`.

mod dir;
mod tar;

pub use dir::{DirOptions, FileSource, Modes, Mtimes, Owner, Report, SourceError, add_dir, add_files};
pub use tar::add_tar;
