//! Volumes between the command line and a machine: made when missing, attached at a start, remembered over
//! a freeze.
//!
//! Problem: a frozen machine has a volume's file system in its memory. Strategy: beside the frozen state lies
//! each volume's generation as it was then (`volumes.json`); a start attaches a volume only if nobody wrote
//! it since. Next: crate `volume` (`attach.rs`), `instance/vmm.rs`.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use instance::{Instance, Lasting, VolumeMount};
use store::Dirs;
use volume::{Access, Volumes};

use crate::args::Global;
use crate::launch::{Mode, Plan};
use crate::mounts::Mount;
use crate::ui::say::tell;

/// In an instance's directory: the generation of each volume at its last freeze.
const REMEMBERED: &str = "volumes.json";

/// Makes what `-v` names and is not there, as docker does. What is only to be read must be.
///
/// # Errors
/// The volumes'.
pub fn make_missing(mounts: &[Mount], dirs: &Dirs, global: &Global) -> Result<()> {
    let volumes = Volumes::of(dirs);
    for mount in mounts {
        let Mount::Volume { name, read_only, .. } = mount else { continue };
        match volumes.get(name) {
            Err(volume::Error::None { .. }) if !read_only => {
                volumes.create(name, volume::DEFAULT_SIZE)?;
                if !global.quiet {
                    tell!("smolvm: made the volume `{name}`");
                }
            }
            other => drop(other?),
        }
    }
    Ok(())
}

/// Opens and locks the plan's volumes for this instance.
///
/// # Errors
/// The volumes': in use, written since the machine was frozen.
pub fn attach(plan: &Plan, instance: &Instance) -> Result<Vec<VolumeMount>> {
    if !plan.mounts.iter().any(|mount| matches!(mount, Mount::Volume { .. })) {
        return Ok(Vec::new());
    }
    let known = if plan.mode == Mode::Frozen { remembered(instance)? } else { BTreeMap::new() };
    let volumes = Volumes::of(&Dirs::from_env()?);
    let mut attached = Vec::new();
    for mount in &plan.mounts {
        let Mount::Volume { name, guest, read_only } = mount else { continue };
        let access = if *read_only { Access::Read } else { Access::Write };
        let volume = volumes.get(name)?;
        let disk = volume.attach(instance.name(), access, known.get(name).copied())?.disk;
        attached.push(VolumeMount { name: name.clone(), disk, guest: guest.clone(), read_only: *read_only });
    }
    Ok(attached)
}

/// Writes down what the volumes of a machine that stands still are now.
///
/// # Errors
/// The host's.
pub fn remember(instance: &Instance, mounted: &[VolumeMount]) -> Result<(), instance::Error> {
    if mounted.is_empty() {
        return Ok(());
    }
    let refused = |error: &dyn std::fmt::Display| instance::Error::Refused(error.to_string());
    let volumes = Volumes::of(&Dirs::from_env()?);
    let mut generations = BTreeMap::new();
    for mount in mounted {
        let info = volumes.get(&mount.name).and_then(|volume| volume.info()).map_err(|e| refused(&e))?;
        generations.insert(&mount.name, info.generation);
    }
    let text = serde_json::to_vec_pretty(&generations).map_err(|e| refused(&e))?;
    instance.put(REMEMBERED, &text, Lasting::Durable)
}

fn remembered(instance: &Instance) -> Result<BTreeMap<String, u64>> {
    let path = instance.path(REMEMBERED);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// The instances that a volume is among the mounts of, running or not.
///
/// # Errors
/// The host's.
pub fn users(name: &str, dirs: &Dirs) -> Result<Vec<Instance>> {
    let mounts = |instance: &Instance| crate::cmd::plan_of(instance).map(|plan| plan.mounts);
    let has = |mount: &Mount| matches!(mount, Mount::Volume { name: other, .. } if other == name);
    let all = instance::list(dirs)?.into_iter();
    Ok(all.filter(|instance| mounts(instance).is_ok_and(|mounts| mounts.iter().any(has))).collect())
}
