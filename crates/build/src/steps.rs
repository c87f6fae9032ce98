//! Build steps: run in order inside one machine, each after the first from the disk that the one
//! before left, so that a build that knows the first steps goes on after them.
//!
//! Problem: steps take time and most builds change the last ones; and a build that goes on from
//! what an earlier one left must give the same root as one that starts at the beginning. Strategy:
//! after each step whatever it left running is ended and the disk is kept, under the digest of the
//! sources and of the steps so far. Invariant: nothing but the disk goes from one step to the next
//! (docs/adr/0071), whether the machine was booted in between or not.
//! Next: `root.rs` `take_back`, `snapshots.rs`.

use artifact::MachineFile;
use instance::{Media, Vmm};
use store::Pin;

use crate::base::RootSource;
use crate::cache::{Cache, Stage};
use crate::error::Error;
use crate::job::Job;
use crate::root::{self, Root};
use crate::stage;

pub(crate) struct Steps<'a> {
    job: &'a Job<'a>,
    root: &'a Root,
    lines: &'a [String],
    /// The root without steps, once it was needed.
    first: Option<Media>,
    /// A machine and how many steps were run in it.
    machine: Option<(usize, Vmm)>,
    /// Steps that were really run.
    pub(crate) ran: usize,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(job: &'a Job<'a>, root: &'a Root) -> Self {
        let lines = &job.definition.file.build.steps;
        Self { job, root, lines, first: None, machine: None, ran: 0 }
    }

    fn key(&self, stage: Stage, count: usize) -> String {
        Cache::key(stage, &self.root.inputs, self.lines.get(..count).unwrap_or(self.lines))
    }

    /// The root after the first `count` steps, as a base without a service.
    pub(crate) fn root_after(&mut self, count: usize) -> Result<Pin, Error> {
        let job = self.job;
        if count == 0 {
            return self.write_first();
        }
        let key = self.key(Stage::Root, count);
        if let Some(hit) = job.cache.get(&key) {
            let these = if count == 1 { "step 1".to_owned() } else { format!("steps 1 to {count}") };
            job.progress.step(&format!("{these}: as in an earlier build"));
            return Ok(hit.pin);
        }
        let (root, erofs) = (self.root, job.erofs(&self.root.lock, self.root.epoch));
        let vmm = self.machine_after(count)?;
        job.progress.step("taking the root back");
        let tree = root::take_back(vmm, &root.tree, &root.spool, root.epoch)?;
        job.progress.step("writing the root image");
        let pin = job.write_base(&job.stage_spec(), RootSource::Tree(&tree, erofs), &root.lock)?;
        job.cache.put(&key, &pin, root.epoch);
        Ok(pin)
    }

    fn write_first(&self) -> Result<Pin, Error> {
        let (job, root) = (self.job, self.root);
        job.progress.step("writing the root image");
        let tree = RootSource::Tree(&root.tree, job.erofs(&root.lock, root.epoch));
        job.write_base(&job.stage_spec(), tree, &root.lock)
    }

    /// A machine with exactly the first `count` steps done.
    fn machine_after(&mut self, count: usize) -> Result<&Vmm, Error> {
        let (mut done, vmm) = match self.machine.take() {
            Some((done, vmm)) if done <= count => (done, vmm),
            _ => self.boot(count)?,
        };
        while let Some((line, number)) = self.lines.get(done).zip(Some(done + 1)).filter(|_| done < count) {
            self.job.progress.step(&format!("step {number} of {}: {line}", self.lines.len()));
            if let Some(failed) = stage::step(&vmm, number, line, self.job.progress)? {
                return Err(self.job.blame(&["build", "steps", &done.to_string()], failed));
            }
            stage::end_leftovers(&vmm)?;
            done = number;
            self.ran += 1;
            let scratch = &self.job.options.cache;
            let disk = self.job.write_object(|writer| stage::save_disk(&vmm, writer, scratch))?;
            self.job.cache.put(&self.key(Stage::Disk, done), &disk, self.root.epoch);
        }
        Ok(&self.machine.insert((done, vmm)).1)
    }

    /// Boots on the disk that the most steps up to `count` left in an earlier build.
    fn boot(&mut self, count: usize) -> Result<(usize, Vmm), Error> {
        let kept = |n: usize| Some((n, self.job.cache.get(&self.key(Stage::Disk, n))?.pin));
        let kept = (1..=count).rev().find_map(kept);
        let first = match self.first.take() {
            Some(first) => first,
            None => Media::open(self.write_first()?)?,
        };
        let first = &*self.first.insert(first);
        match kept {
            Some((done, disk)) => {
                self.job.progress.step(&format!("booting it as an earlier build left it after step {done}"));
                let disk: MachineFile = disk.open()?;
                Ok((done, self.job.boot(first, Some(&disk))?))
            }
            None => {
                self.job.progress.step("booting it");
                Ok((0, self.job.boot(first, None)?))
            }
        }
    }
}
