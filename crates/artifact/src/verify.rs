//! The check of every byte: each section's digest, and zeros in the padding. Header and index were checked when
//! the file was opened.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Problem, Result};
use crate::format::{PAGE_SIZE, Section, page_up};
use crate::hash::{digest_parallel, usual_threads};
use crate::reader::MachineFile;

/// How far a check or copy is, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Done so far; parts that are done by several threads may be counted late.
    pub done: u64,
    /// All there is.
    pub total: u64,
}

/// How [`MachineFile::verify_all`] works.
#[derive(Clone, Copy, Default)]
pub struct VerifyOptions<'a> {
    /// How many threads hash; 0 takes as many as are worth while.
    pub threads: usize,
    /// Called now and then, from any thread; [`ControlFlow::Break`] ends the check with
    /// [`Problem::Cancelled`].
    pub progress: Option<&'a (dyn Fn(Progress) -> ControlFlow<()> + Sync)>,
}

impl MachineFile {
    /// Reads every byte of the file and compares it with the digests.
    ///
    /// Reading, not mapping: a file that somebody cuts short meanwhile gives an error, not a SIGBUS.
    pub fn verify_all(&self, options: VerifyOptions<'_>) -> Result<()> {
        let done = AtomicU64::new(0);
        for section in self.sections() {
            self.verify_section(section, options, &done)?;
        }
        Ok(())
    }

    /// One section and the padding after it.
    fn verify_section(&self, section: &Section, options: VerifyOptions<'_>, done: &AtomicU64) -> Result<()> {
        let threads = if options.threads == 0 { usual_threads() } else { options.threads };
        let cancelled = AtomicBool::new(false);
        let load = |offset: u64, bytes: &mut [u8]| {
            self.file().read_exact_at(bytes, section.offset.saturating_add(offset))?;
            let before = done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let Some(progress) = options.progress else {
                return Ok(());
            };
            let done = before + bytes.len() as u64;
            if progress(Progress { done, total: self.len() }).is_break() {
                cancelled.store(true, Ordering::Relaxed);
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        };
        let digest = digest_parallel(section.len, threads, load).map_err(|error| {
            if cancelled.load(Ordering::Relaxed) {
                return self.error(Problem::Cancelled);
            }
            self.read_error(section, error)
        })?;
        if digest != section.digest {
            return Err(self.digest_differs(section));
        }
        self.verify_padding(section)
    }

    /// The zeros between a section's end and the next page.
    fn verify_padding(&self, section: &Section) -> Result<()> {
        let end = section.end();
        let mut page = [0; PAGE_SIZE as usize];
        let len = page_up(end).unwrap_or(end) - end;
        let padding = &mut page[..len as usize];
        let read = self.file().read_exact_at(padding, end);
        read.map_err(|error| self.read_error(section, error))?;
        match padding.iter().position(|&byte| byte != 0) {
            None => Ok(()),
            Some(wrong) => {
                let place = format!("the padding after section {}", section.name);
                let offset = end.saturating_add(wrong as u64);
                Err(self.error(Problem::damaged(place, offset, "bytes that must be zero are not")))
            }
        }
    }
}
