//! One side of a comparison: definition, files, processes, where its memory is.

mod stopped;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use agent_protocol::{AGENT_PORT, Reply, Request, Stats};
use anyhow::{Context, Result, bail};
use artifact::{Digest, MachineFile, SectionKind};
use image::tree::Time;
use image::{FileRange, Limits, MergeOptions, Spool, Tree, merge_upper, read_erofs};
use instance::control::{Client, Request as Ask};
use instance::{DataStream, Instance, Media, Phase, Vmm, VmmOptions};
use spec::MachineSpec;
use store::Pin;

use crate::args::EngineArgs;
use crate::cmd::vmm;
use crate::launch::{self, Home, Mode, Plan};
use crate::volumes;

/// What was named.
pub enum Subject {
    Machine(Instance),
    /// A machine file: its frozen state, or its base where it has none.
    File {
        pin: Pin,
        /// Which of its snapshots; the default to resume when absent.
        snapshot: Option<String>,
        label: String,
    },
    /// A machine file's base, whatever else it has.
    Base {
        pin: Pin,
        label: String,
    },
    /// What a copy was made of.
    Origin {
        pin: Pin,
        plan: Box<Plan>,
        path: PathBuf,
        of: String,
    },
}

/// Where a side's memory is.
pub enum Memory {
    None,
    /// In a file that builds on the media.
    Saved(Box<(Media, MachineFile)>),
    /// In a running machine: pages written since it was resumed, pages in all.
    Live {
        dirty: u64,
        pages: u64,
    },
}

/// What there is to compare.
pub struct Side {
    pub label: String,
    pub spec: MachineSpec,
    /// Digest of the root image.
    pub root: Digest,
    /// The files: root image and overlay as one.
    pub tree: Tree,
    /// Nothing where nothing runs.
    pub stats: Option<Stats>,
    pub memory: Memory,
}

impl Side {
    /// Looks at a subject. Contents of changed files go to `spool`.
    pub fn open(subject: Subject, home: &Home, spool: &Spool) -> Result<Self> {
        match subject {
            Subject::Machine(instance) => machine(&instance, home, spool),
            Subject::File { pin, snapshot, label } => {
                if !pin.open()?.is_snapshot() {
                    let media = Media::open_in(&home.store, pin)?;
                    return Self::of(label, &media, None, None, Memory::None, spool);
                }
                let media = Media::open_snapshot(&home.store, pin, snapshot.as_deref())?;
                let file = media.file.again()?;
                looked_into(label, media, file, options(home)?, spool)
            }
            Subject::Base { pin, label } => {
                let media = Media::open_in(&home.store, pin)?;
                Self::of(label, &media, None, None, Memory::None, spool)
            }
            Subject::Origin { pin, plan, path, of } => {
                let media = launch::media(&plan, &home.store, pin)?;
                let file = MachineFile::open_path(&path)?;
                looked_into(
                    format!("{of}, when it was forked"),
                    media,
                    file,
                    with_volumes(&plan, home)?,
                    spool,
                )
            }
        }
    }

    fn of(
        label: String,
        media: &Media,
        upper: Option<DataStream>,
        stats: Option<Stats>,
        memory: Memory,
        spool: &Spool,
    ) -> Result<Self> {
        let mut tree = root(media)?;
        if let Some(upper) = upper {
            tree = merge_upper(tree, upper, spool, &AS_IT_IS).context("reading what the machine changed")?;
        }
        Self::with(label, media, tree, stats, memory)
    }

    fn with(label: String, media: &Media, tree: Tree, stats: Option<Stats>, memory: Memory) -> Result<Self> {
        let root = media.base().require(SectionKind::RootImage, 0)?.digest;
        Ok(Self { label, spec: media.spec.clone(), root, tree, stats, memory })
    }
}

/// Nothing is newer than that: times stay as they are.
const AS_IT_IS: MergeOptions = MergeOptions { epoch: Time::from_secs(i64::MAX), settle: false };

/// The files of the root image.
fn root(media: &Media) -> Result<Tree> {
    let base = media.base();
    let section = base.require(SectionKind::RootImage, 0)?;
    let file = base.file().try_clone().context("opening the root image again")?;
    let image = FileRange { file, offset: section.offset, len: section.len };
    read_erofs(Arc::new(image), Limits::default()).context("reading the root image")
}

fn machine(instance: &Instance, home: &Home, spool: &Spool) -> Result<Side> {
    let record = instance.record()?;
    let id = record.file.parse().map_err(|_| anyhow::anyhow!("the record names no machine file"))?;
    let plan = vmm::read_plan(instance)?;
    let mut media = launch::media(&plan, &home.store, home.store.pin(&id)?)?;
    media.spec.vcpus = plan.cpus.unwrap_or(media.spec.vcpus);
    media.spec.memory = plan.memory.unwrap_or(media.spec.memory);
    let label = record.name.clone();
    match instance.phase() {
        Phase::Running => {
            let client = Client::new(instance)?;
            let stats = stats(client.connect(AGENT_PORT)?)?;
            let upper = DataStream::upper(client.connect(AGENT_PORT)?)?;
            let drift = client.call(&Ask::Drift)?;
            let number = |key: &str| drift.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
            let memory = Memory::Live { dirty: number("dirty_pages"), pages: number("pages") };
            Side::of(label, &media, Some(upper), Some(stats), memory, spool)
        }
        Phase::Frozen => {
            let saved = MachineFile::open_path(&instance.saved())?;
            looked_into(label, media, saved, with_volumes(&plan, home)?, spool)
        }
        Phase::Stopped => {
            let saved = MachineFile::open_path(&instance.saved())?;
            if let Some(tree) = stopped::tree(&label, &media, &saved, spool)? {
                return Side::with(label, &media, tree, None, Memory::None);
            }
            // The disk has to be read by somebody who knows all of its file system: a kernel.
            let (vmm, _) = Vmm::boot(&media, Some(&saved), options(home)?)?;
            let side =
                Side::of(label, &media, Some(DataStream::upper(vmm.connect()?)?), None, Memory::None, spool);
            vmm.machine().end();
            side
        }
        Phase::Dead => {
            bail!("nothing is left of the run of `{label}`: its process was ended without saving")
        }
    }
}

/// A frozen machine, by way of a copy that goes again at once.
fn looked_into(
    label: String,
    media: Media,
    file: MachineFile,
    options: VmmOptions,
    spool: &Spool,
) -> Result<Side> {
    let vmm = Vmm::look_into(&media, &file, options)?;
    let stats = stats(vmm.connect()?)?;
    let upper = DataStream::upper(vmm.connect()?)?;
    let side = Side::of(label, &media, Some(upper), Some(stats), Memory::None, spool);
    vmm.machine().end();
    Ok(Side { memory: Memory::Saved(Box::new((media, file))), ..side? })
}

/// [`options`] of one that had volumes when its state was taken.
fn with_volumes(plan: &Plan, home: &Home) -> Result<VmmOptions> {
    Ok(VmmOptions { volumes: volumes::stand_ins(plan, &home.dirs)?, ..options(home)? })
}

fn options(home: &Home) -> Result<VmmOptions> {
    let engine = std::env::var("SMOLVM_ENGINE").unwrap_or_else(|_| "auto".into());
    let plan = Plan::new(Mode::Resume, &EngineArgs { engine, force_template: false, tsc_khz: None });
    launch::vmm_options(&plan, home.dirs.cache.clone(), None)
}

fn stats(stream: UnixStream) -> Result<Stats> {
    match agent_protocol::Client::new(stream).call(&Request::Stats)? {
        Reply::Stats(stats) => Ok(stats),
        _ => bail!("the guest's agent answered with something else; is it of another version?"),
    }
}
