//! Whether all that is kept is whole: the store, machines, volumes, the cache. Looks at every byte; with `repair`
//! mends what a kill, a power failure or a bad disk left. What holds data is set aside, never deleted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use artifact::temp::leftovers;
use artifact::{MachineFile, VerifyOptions};
use build::CleanPolicy;
use instance::{Instance, Lasting, Phase, Record};
use serde::Serialize;
use store::CheckOptions;
use volume::Volumes;

use crate::cmd::{update, vmm};
use crate::launch::{Home, Mode};

/// How long a machine may be without a plan: longer than any start takes.
const STARTING: Duration = Duration::from_secs(60);

/// One thing that is not as it should be.
#[derive(Debug, Serialize)]
pub struct Fault {
    /// What it is about: `store`, `machine`, `volume`, `cache`.
    pub about: &'static str,
    /// What is wrong, and where only a person can help, how.
    pub what: String,
    /// What a repair does, or did, about it.
    pub remedy: Option<String>,
    /// Whether it was done.
    pub repaired: bool,
}

/// Looks at everything.
///
/// # Errors
/// The host's.
pub fn check(home: &Home, repair: bool, say: &dyn Fn(&str)) -> Result<Vec<Fault>> {
    let mut check = Check { home, repair, faults: Vec::new() };
    say("looking at every byte of the store");
    check.store()?;
    say("looking at every byte of machines");
    check.machines()?;
    check.sockets()?;
    check.volumes()?;
    check.cache()?;
    Ok(check.faults)
}

struct Check<'a> {
    home: &'a Home,
    repair: bool,
    faults: Vec<Fault>,
}

impl Check<'_> {
    /// A fault that `mend` mends.
    fn mend(
        &mut self,
        about: &'static str,
        what: String,
        remedy: impl Into<String>,
        mend: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if self.repair {
            mend().with_context(|| format!("repairing: {what}"))?;
        }
        let remedy = Some(remedy.into());
        self.faults.push(Fault { about, what, remedy, repaired: self.repair });
        Ok(())
    }

    /// A fault that a person must mend.
    fn tell(&mut self, about: &'static str, what: String) {
        self.faults.push(Fault { about, what, remedy: None, repaired: false });
    }

    fn store(&mut self) -> Result<()> {
        let options = CheckOptions { repair: self.repair, progress: None };
        for finding in self.home.store.check(options)? {
            let aside = finding.aside.as_ref().map(|to| format!(" as {}", to.display())).unwrap_or_default();
            let remedy = finding.remedy().map(|remedy| format!("{remedy}{aside}"));
            let (what, repaired) = (finding.to_string(), finding.mended);
            self.faults.push(Fault { about: "store", what, remedy, repaired });
        }
        Ok(())
    }

    fn machines(&mut self) -> Result<()> {
        for name in instance::remove_dead(&self.home.dirs, !self.repair)? {
            let what = format!("{name}: left by a process that was killed; nothing of it is to be kept");
            self.mend("machine", what, "removed", || Ok(()))?;
        }
        for instance in instance::list(&self.home.dirs)? {
            // One that runs looks after itself, and shall not be told of what it is just writing.
            if instance.phase() != Phase::Running && instance.path("").is_dir() {
                self.machine(&instance)?;
            }
        }
        Ok(())
    }

    fn machine(&mut self, instance: &Instance) -> Result<()> {
        let name = instance.name();
        if update::is_half(instance) {
            let what = format!("{name}: an update of it was cut off");
            self.mend("machine", what, "made what it was before", || update::undo_half(instance).map(drop))?;
        }
        for path in unfinished(instance) {
            let what = format!("{}: left unfinished by a process that is gone", path.display());
            self.mend("machine", what, "removed", || Ok(fs::remove_file(&path)?))?;
        }
        let record = match instance.record() {
            Ok(record) => record,
            Err(error) => return self.no_record(instance, &error.to_string()),
        };
        let is_saved = record.phase.is_saved();
        let plan = match vmm::read_plan(instance) {
            Ok(plan) => plan,
            Err(error) if is_saved => {
                self.tell(
                    "machine",
                    format!("{name}: {error:#}; what it saved is {}", instance.saved().display()),
                );
                return Ok(());
            }
            // Somebody is just making it.
            Err(_) if !vmm::plan_path(instance).exists() && is_new(&instance.path("")) => return Ok(()),
            Err(_) => {
                let what = format!("{name}: how it is started cannot be read, and nothing of it is saved");
                return self.set_aside(instance, what);
            }
        };
        // A copy that is not saved starts from where it was copied, if the power was not off since.
        if !is_saved
            && plan.mode == Mode::Forked
            && let Err(why) = whole(&instance.origin())
        {
            return self.set_aside(instance, format!("{name}: a copy, which a power failure ends: {why}"));
        }
        self.file_of(instance, &record)?;
        if is_saved { self.saved(instance, &record) } else { Ok(()) }
    }

    fn no_record(&mut self, instance: &Instance, error: &str) -> Result<()> {
        let name = instance.name();
        if instance.saved().exists() {
            let place = instance.saved();
            self.tell("machine", format!("{error}; what it saved is {}", place.display()));
            return Ok(());
        }
        self.set_aside(instance, format!("{name}: its record cannot be read, and nothing of it is saved"))
    }

    /// Puts what is left of a machine that cannot go on where it takes no name.
    fn set_aside(&mut self, instance: &Instance, what: String) -> Result<()> {
        let (name, aside) = (instance.name(), self.home.dirs.state.join("damaged"));
        self.mend("machine", what, format!("set aside in {}", aside.display()), || {
            store::dirs::ensure_private(&aside)?;
            let free = |to: &PathBuf| !to.exists();
            let to =
                (0u32..).map(|n| aside.join(format!("{name}.{n}"))).find(free).context("no free name")?;
            Ok(fs::rename(instance.path(""), to)?)
        })
    }

    /// Whether the machine file that it needs is in the store, and held for it.
    fn file_of(&mut self, instance: &Instance, record: &Record) -> Result<()> {
        let (name, store) = (instance.name(), &self.home.store);
        let Ok(id) = record.file.parse() else {
            self.tell(
                "machine",
                format!("{name}: its record names no machine file; `smolvm rm {name}` removes it"),
            );
            return Ok(());
        };
        if store.object_path(&id).exists() {
            if record.kept && !store.is_referred(&id, &instance.path("")) {
                let what = format!("{name}: it is not noted that it needs machine {}", id.short());
                let note = || Ok(store.add_reference(&store.pin(&id)?, &instance.path(""))?);
                return self.mend("machine", what, "noted", note);
            }
            return Ok(());
        }
        let source = Path::new(&record.source);
        let has_it = MachineFile::open_path(source).is_ok_and(|file| file.id() == id);
        if has_it {
            let what = format!("{name}: its machine file is not in the store");
            let import = || Ok(store.add_reference(&store.import(source)?, &instance.path(""))?);
            return self.mend("machine", what, format!("imported from {}", source.display()), import);
        }
        self.tell(
            "machine",
            format!(
                "{name}: its machine file {id} ({}) is not in the store; `smolvm import` that file, or \
                 `smolvm rm {name}`",
                record.source
            ),
        );
        Ok(())
    }

    /// A frozen or stopped machine is what it saved.
    fn saved(&mut self, instance: &Instance, record: &Record) -> Result<()> {
        let (name, path) = (instance.name(), instance.saved());
        let Err(why) = whole(&path) else { return Ok(()) };
        let aside = instance.path("saved.damaged");
        let what = format!("{name}: what it saved cannot be used: {why}");
        let remedy = if path.exists() {
            format!("set aside as {}; its next start is from its machine file", aside.display())
        } else {
            "its next start is from its machine file".to_owned()
        };
        self.mend("machine", what, remedy, || {
            let mut plan = vmm::read_plan(instance)?;
            plan.mode = if plan.snapshot.is_some() { Mode::Resume } else { Mode::Cold };
            vmm::replace_plan(instance, &plan)?;
            let dead = Record { phase: Phase::Dead, ..record.clone() };
            instance.put_record(&dead, Lasting::Durable)?;
            if path.exists() {
                fs::rename(&path, &aside)?;
            }
            Ok(())
        })
    }

    /// Sockets that nobody listens on any more.
    fn sockets(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.home.dirs.runtime).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = path.extension().is_some_and(|ext| ext == "sock" || ext == "net");
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let lives = Instance::open(&self.home.dirs, name).is_ok_and(|i| i.phase() == Phase::Running);
            if ours && spec::valid_name(name) && !lives {
                let what = format!("{}: nobody listens there", path.display());
                self.mend("machine", what, "removed", || Ok(fs::remove_file(&path)?))?;
            }
        }
        Ok(())
    }

    fn volumes(&mut self) -> Result<()> {
        let volumes = Volumes::of(&self.home.dirs);
        for path in volumes.leftovers(self.repair)? {
            let what = format!("{}: a volume whose making was cut off", path.display());
            self.mend("volume", what, "removed", || Ok(()))?;
        }
        for volume in volumes.list()? {
            if let Err(error) = volume.info() {
                self.tell("volume", error.to_string());
            }
        }
        Ok(())
    }

    fn cache(&mut self) -> Result<()> {
        let policy = CleanPolicy { unused_for: None, dry_run: !self.repair };
        let cleaned = build::clean_downloads(&self.home.dirs.cache, policy)?;
        if cleaned.files > 0 {
            let what = format!("{} downloads that were cut off", cleaned.files);
            self.mend("cache", what, "removed", || Ok(()))?;
        }
        if self.repair {
            build::forget_pruned(&self.home.dirs.cache, &self.home.store);
        }
        Ok(())
    }
}

/// Whether something came into a directory just now.
fn is_new(dir: &Path) -> bool {
    let changed = fs::metadata(dir).and_then(|meta| meta.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < STARTING))
}

/// What killed writers left in an instance's directory.
fn unfinished(instance: &Instance) -> Vec<PathBuf> {
    let dir = instance.path("");
    let mut found = leftovers(&dir).unwrap_or_default();
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    found.extend(entries.filter(|path| path.extension().is_some_and(|ext| ext == "new")));
    found
}

/// Whether a file is there with every byte right, or why not.
fn whole(path: &Path) -> Result<(), String> {
    let file = MachineFile::open_path(path).map_err(|error| error.to_string())?;
    file.verify_all(VerifyOptions::default()).map_err(|error| error.to_string())
}
