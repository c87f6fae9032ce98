//! Volumes between the command line and a machine: made when missing, attached at a start, remembered over
//! a freeze.
//!
//! Problem: a frozen machine has a volume's file system in its memory. Strategy: beside the frozen state lies
//! each volume's generation as it was then (`volumes.json`); a start attaches a volume only if nobody wrote
//! it since. Next: crate `volume` (`attach.rs`), `instance/vmm.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use instance::{Instance, Lasting, VolumeMount};
use store::Dirs;
use volume::{Access, Volume, Volumes};

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
    if !are_in(plan) {
        return Ok(Vec::new());
    }
    // What a guest that goes on has mounted is to be what it was.
    let goes_on = matches!(plan.mode, Mode::Frozen | Mode::Forked);
    let known = if goes_on { remembered(instance)? } else { BTreeMap::new() };
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

/// The volumes that a machine writes: of those a copy gets its own.
pub fn written(plan: &Plan) -> Vec<String> {
    let name = |mount: &Mount| match mount {
        Mount::Volume { name, read_only: false, .. } => Some(name.clone()),
        _ => None,
    };
    plan.mounts.iter().filter_map(name).collect()
}

/// Whether a machine has any volume.
pub fn are_in(plan: &Plan) -> bool {
    plan.mounts.iter().any(|mount| matches!(mount, Mount::Volume { .. }))
}

/// Looks, before anything is made, whether every copy of `source` can have volumes of its own: names and room.
///
/// # Errors
/// A name that is taken or impossible; too little room.
pub fn can_copy(plan: &Plan, source: &str, copies: &[String], dirs: &Dirs) -> Result<()> {
    let volumes = Volumes::of(dirs);
    let mut bytes = 0u64;
    for name in written(plan) {
        let volume = volumes.get(&name)?;
        bytes = bytes.saturating_add(volume.sizes()?.1.saturating_mul(copies.len() as u64));
        for copy in copies {
            let own = name_for(&volume, source, copy)?;
            if volumes.get(&own).is_ok() {
                return Err(volume::Error::Taken(own))
                    .with_context(|| format!("copying volume `{name}` for `{copy}`"));
            }
        }
    }
    Ok(volumes.has_room(bytes)?)
}

/// What the names of the volumes end with that are made for a copy. (An instance's name may have dots.)
fn suffix(machine: &str) -> String {
    format!("-{}", machine.replace('.', "_"))
}

/// What the copy's volume in the place of `volume` is called: VOLUME-COPY.
fn name_for(volume: &Volume, source: &str, copy: &str) -> Result<String> {
    let made_for_source = volume.info()?.made_for.is_some_and(|machine| machine == source);
    let stem =
        Some(volume.name()).filter(|_| made_for_source).and_then(|name| name.strip_suffix(&suffix(source)));
    let name = format!("{}{}", stem.unwrap_or(volume.name()), suffix(copy));
    if !volume::valid_name(&name) {
        bail!("`{name}` cannot name a copy of volume `{}`: choose a shorter --name", volume.name());
    }
    Ok(name)
}

/// Gives the copy `instance` of `source` volumes of its own, with the bytes of `files`, by the names of those that they
/// are copies of; `last`: nobody needs the files any more. `plan` is the copy's, and names them from now on.
///
/// # Errors
/// The volumes', the host's.
pub fn give(
    plan: &mut Plan,
    source: &str,
    instance: &Instance,
    files: &[(String, String)],
    last: bool,
) -> Result<()> {
    let volumes = Volumes::of(&Dirs::from_env()?);
    let mut generations = BTreeMap::new();
    for mount in &mut plan.mounts {
        let Mount::Volume { name, .. } = mount else { continue };
        let mut volume = volumes.get(name)?;
        if let Some((_, file)) = files.iter().find(|(copied, _)| copied == name) {
            let own = name_for(&volume, source, instance.name())?;
            volume = volumes.adopt(&own, name, instance.name(), Path::new(file), last)?;
            *name = own;
        }
        generations.insert(name.clone(), volume.info()?.generation);
    }
    if last {
        // Of one that could not be taken.
        files.iter().for_each(|(_, file)| drop(fs::remove_file(file)));
    }
    let text = serde_json::to_vec_pretty(&generations)?;
    Ok(instance.put(REMEMBERED, &text, Lasting::Kill)?)
}

/// Empty disks as large as the plan's volumes, for a machine that is looked into and does not go on: its devices are to be
/// what they were, and nobody reads them.
///
/// # Errors
/// The volumes', the host's.
pub fn stand_ins(plan: &Plan, dirs: &Dirs) -> Result<Vec<VolumeMount>> {
    let volumes = Volumes::of(dirs);
    let mut disks = Vec::new();
    for mount in &plan.mounts {
        let Mount::Volume { name, guest, read_only } = mount else { continue };
        let size = volumes.get(name)?.sizes()?.0;
        disks.push(VolumeMount::stand_in(name, guest, *read_only, size, &dirs.cache)?);
    }
    Ok(disks)
}

/// Removes the volumes that were made for a copy; it is about to be removed, and does not run.
///
/// # Errors
/// The host's.
pub fn remove_made_for(instance: &str, dirs: &Dirs) -> Result<()> {
    // Of the others nothing is read: each `rm` comes by here.
    let end = suffix(instance);
    for volume in Volumes::of(dirs).list()?.into_iter().filter(|volume| volume.name().ends_with(&end)) {
        if volume.info().is_ok_and(|info| info.made_for.as_deref() == Some(instance)) {
            volume.remove()?;
        }
    }
    Ok(())
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
