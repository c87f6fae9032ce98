//! `system df`: what takes room, what of it `prune -a` would free, and what needs what.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use artifact::Digest;
use instance::{Instance, Phase};
use serde::Serialize;
use serde_json::{Value, json};
use store::{Image, ImageKind};
use volume::Volumes;

use crate::args::{Global, Prune, System, SystemVerb};
use crate::cmd::prune;
use crate::launch::Home;
use crate::ui::say::say;
use crate::{ui, volumes};

pub fn system(words: &System, global: &Global, home: &Home) -> Result<u8> {
    let SystemVerb::Df { details } = &words.verb;
    let room = Room::look(home)?;
    if global.json {
        ui::json(&room.json())?;
        return Ok(0);
    }
    let row = |row: &Row| {
        let share = (row.reclaimable * 100).checked_div(row.bytes).unwrap_or(0);
        let reclaimable = format!("{} ({share}%)", ui::bytes(row.reclaimable));
        vec![
            row.what.into(),
            row.total.to_string(),
            row.active.to_string(),
            ui::bytes(row.bytes),
            reclaimable,
        ]
    };
    let rows: Vec<Vec<String>> = room.rows().iter().map(row).collect();
    ui::table(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &rows);
    if *details {
        room.details();
    }
    Ok(0)
}

/// A line of the summary. Bytes are those of the files; what the file system shares between them counts each time.
#[derive(Clone, Copy, Debug, Serialize)]
struct Row {
    #[serde(rename = "type")]
    what: &'static str,
    total: usize,
    /// Those in use: machine files that run or that something needs, machines that run, volumes that a machine has.
    active: usize,
    bytes: u64,
    /// What `prune -a` would free now.
    reclaimable: u64,
}

/// A machine file and what it is to others.
struct Object {
    image: Image,
    /// Of a step or a configured root that builds keep.
    of_build: bool,
    /// The instances and objects that need it, by their names.
    needed_by: Vec<String>,
    reclaimable: bool,
}

struct Machine {
    name: String,
    phase: Phase,
    file: Option<Digest>,
    bytes: u64,
    reclaimable: bool,
}

struct Volume {
    name: String,
    bytes: u64,
    machines: Vec<String>,
}

struct Room {
    objects: Vec<Object>,
    machines: Vec<Machine>,
    volumes: Vec<Volume>,
    downloads: Vec<Row>,
    aside: Row,
}

impl Room {
    fn look(home: &Home) -> Result<Self> {
        // What `prune -a` would do is not computed a second time.
        let all = Prune { all: true, dry_run: true, keep: None, max_size: None };
        let would = prune::work(&all, home)?;
        let gone: HashSet<Digest> = would.pruned.objects.iter().map(|(id, _)| *id).collect();
        let machines = machines(home, &would.machines)?;
        let objects = objects(home, &machines, &gone)?;
        let volumes =
            Volumes::of(&home.dirs).list()?.iter().map(|one| volume(one, home)).collect::<Result<_>>()?;
        let kept = build::kept_downloads(&home.dirs.cache, would.keep.unwrap_or_default()).into_iter();
        let busy = would.downloads.busy;
        let download = |kept: build::Downloads| Row {
            what: kept.what,
            total: kept.files,
            active: 0,
            bytes: kept.bytes,
            reclaimable: if busy { 0 } else { kept.unused_bytes },
        };
        let aside = aside(&[home.dirs.store().join("damaged"), home.dirs.state.join("damaged")]);
        Ok(Self { objects, machines, volumes, downloads: kept.map(download).collect(), aside })
    }

    fn rows(&self) -> Vec<Row> {
        let objects = |what, of_build| {
            let these = || self.objects.iter().filter(|object| object.of_build == of_build);
            let active = |object: &&Object| object.image.in_use || !object.needed_by.is_empty();
            Row {
                what,
                total: these().count(),
                active: these().filter(active).count(),
                bytes: these().map(|object| object.image.len).sum(),
                reclaimable: these().filter(|object| object.reclaimable).map(|object| object.image.len).sum(),
            }
        };
        let machines = Row {
            what: "machines",
            total: self.machines.len(),
            active: self.machines.iter().filter(|machine| machine.phase == Phase::Running).count(),
            bytes: self.machines.iter().map(|machine| machine.bytes).sum(),
            reclaimable: self.machines.iter().filter(|m| m.reclaimable).map(|m| m.bytes).sum(),
        };
        let volumes = Row {
            what: "volumes",
            total: self.volumes.len(),
            active: self.volumes.iter().filter(|volume| !volume.machines.is_empty()).count(),
            bytes: self.volumes.iter().map(|volume| volume.bytes).sum(),
            // Data is removed by name only.
            reclaimable: 0,
        };
        let mut rows = vec![objects("machine files", false), machines, volumes, objects("build steps", true)];
        rows.extend(&self.downloads);
        if self.aside.total > 0 {
            rows.push(self.aside);
        }
        rows
    }

    fn json(&self) -> Value {
        let objects: Vec<Value> = self.objects.iter().map(|object| object.json(self)).collect();
        let machine = |machine: &Machine| {
            json!({
                "name": machine.name, "phase": machine.phase.word(), "bytes": machine.bytes,
                "machine_file": machine.file.map(|id| id.to_string()), "reclaimable": machine.reclaimable,
            })
        };
        let volume = |volume: &Volume| json!({ "name": volume.name, "bytes": volume.bytes, "machines": volume.machines });
        json!({
            "summary": self.rows(),
            "machine_files": objects,
            "machines": self.machines.iter().map(machine).collect::<Vec<_>>(),
            "volumes": self.volumes.iter().map(volume).collect::<Vec<_>>(),
        })
    }

    /// Everything: what builds on or belongs to something stands below it, further in.
    fn details(&self) {
        let mut rows = Vec::new();
        let top = self.objects.iter().filter(|object| !object.of_build && self.above(object).is_none());
        top.for_each(|object| self.tree(object, 0, &mut rows));
        let lost =
            |machine: &&Machine| !self.objects.iter().any(|object| Some(object.image.id) == machine.file);
        self.machines.iter().filter(lost).for_each(|machine| rows.push(machine.row(0)));
        say!("");
        ui::table(&["MACHINE FILES AND MACHINES", "ID", "KIND", "SIZE", "RECLAIMABLE", "NEEDED BY"], &rows);
        if !self.volumes.is_empty() {
            let row = |v: &Volume| vec![v.name.clone(), ui::bytes(v.bytes), v.machines.join(", ")];
            say!("");
            ui::table(&["VOLUMES", "SIZE", "MACHINES"], &self.volumes.iter().map(row).collect::<Vec<_>>());
        }
        let steps: Vec<&Object> = self.objects.iter().filter(|object| object.of_build).collect();
        if !steps.is_empty() {
            let row = |o: &&Object| vec![o.image.id.short(), kind(&o.image), ui::bytes(o.image.len)];
            say!("");
            ui::table(&["BUILD STEPS", "KIND", "SIZE"], &steps.iter().map(row).collect::<Vec<_>>());
        }
    }

    /// The object that another one builds on, or the base whose root image a snapshot has, too.
    fn above(&self, object: &Object) -> Option<&Object> {
        let others = || self.objects.iter().filter(|other| !other.of_build);
        if let Some(parent) = object.image.parent {
            return others().find(|other| other.image.id == parent);
        }
        let is_base = |other: &&Object| matches!(other.image.kind, ImageKind::Base | ImageKind::Oci);
        let root = object.image.root.filter(|_| object.image.kind == ImageKind::Snapshot)?;
        others().filter(is_base).find(|other| other.image.root == Some(root))
    }

    fn tree(&self, object: &Object, depth: usize, rows: &mut Vec<Vec<String>>) {
        rows.push(object.row(depth));
        let mine = |machine: &&Machine| machine.file == Some(object.image.id);
        self.machines.iter().filter(mine).for_each(|machine| rows.push(machine.row(depth + 1)));
        // A base, its snapshots, their changes: no deeper, whatever files say of each other.
        if depth < 2 {
            let below = |other: &&Object| {
                !other.of_build && self.above(other).is_some_and(|above| above.image.id == object.image.id)
            };
            self.objects.iter().filter(below).for_each(|other| self.tree(other, depth + 1, rows));
        }
    }
}

impl Object {
    fn name(&self) -> String {
        if self.image.names.is_empty() { "-".into() } else { self.image.names.join(", ") }
    }

    fn row(&self, depth: usize) -> Vec<String> {
        let bytes = ui::bytes(self.image.len);
        let reclaimable = if self.reclaimable { bytes.clone() } else { ui::bytes(0) };
        let name = format!("{}{}", "  ".repeat(depth), self.name());
        vec![name, self.image.id.short(), kind(&self.image), bytes, reclaimable, self.needed_by.join(", ")]
    }

    fn json(&self, room: &Room) -> Value {
        json!({
            "id": self.image.id.to_string(),
            "names": self.image.names,
            "kind": kind(&self.image),
            "bytes": self.image.len,
            "on_disk_bytes": self.image.on_disk,
            "builds_on": self.image.parent.map(|id| id.to_string()),
            "below": room.above(self).map(|above| above.image.id.to_string()),
            "of_build": self.of_build,
            "in_use": self.image.in_use,
            "needed_by": self.needed_by,
            "reclaimable": self.reclaimable,
        })
    }
}

impl Machine {
    fn row(&self, depth: usize) -> Vec<String> {
        let reclaimable = ui::bytes(if self.reclaimable { self.bytes } else { 0 });
        let name = format!("{}{}", "  ".repeat(depth), self.name);
        vec![name, "-".into(), self.phase.word().into(), ui::bytes(self.bytes), reclaimable]
    }
}

/// What changed since a parent is no snapshot that stands alone.
fn kind(image: &Image) -> String {
    match image.parent {
        Some(_) => "changes".into(),
        None => format!("{:?}", image.kind).to_lowercase(),
    }
}

fn machines(home: &Home, dead: &[String]) -> Result<Vec<Machine>> {
    let mut seen = HashSet::new();
    let mut machine = |instance: &Instance| Machine {
        name: instance.name().to_owned(),
        phase: instance.phase(),
        file: instance.record().ok().and_then(|record| record.file.parse().ok()),
        bytes: instance.on_disk(&mut seen),
        reclaimable: dead.iter().any(|name| name == instance.name()),
    };
    Ok(instance::list(&home.dirs)?.iter().map(&mut machine).collect())
}

fn objects(home: &Home, machines: &[Machine], gone: &HashSet<Digest>) -> Result<Vec<Object>> {
    let of_builds: HashSet<Digest> = build::cached(&home.dirs.cache).into_iter().collect();
    let mut images = home.store.images()?;
    images.sort_by(|a, b| (&a.names, a.id).cmp(&(&b.names, b.id)));
    let mut needed: HashMap<Digest, Vec<String>> = HashMap::new();
    for machine in machines.iter().filter(|machine| !machine.reclaimable) {
        if let Some(id) = machine.file {
            needed.entry(id).or_default().push(machine.name.clone());
        }
    }
    for image in &images {
        if let Some(parent) = image.parent {
            let name = image.names.first().cloned().unwrap_or_else(|| image.id.short());
            needed.entry(parent).or_default().push(name);
        }
    }
    let object = |image: Image| Object {
        of_build: image.names.is_empty() && (of_builds.contains(&image.id) || image.kind == ImageKind::Layer),
        needed_by: needed.remove(&image.id).unwrap_or_default(),
        reclaimable: gone.contains(&image.id),
        image,
    };
    Ok(images.into_iter().map(object).collect())
}

fn volume(volume: &volume::Volume, home: &Home) -> Result<Volume> {
    let (_, bytes) = volume.sizes()?;
    let users = volumes::users(volume.name(), &home.dirs)?;
    let machines = users.iter().map(|user| user.name().to_owned()).collect();
    Ok(Volume { name: volume.name().to_owned(), bytes, machines })
}

/// What repairs set aside.
fn aside(dirs: &[impl AsRef<Path>]) -> Row {
    let entries = dirs.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let lens: Vec<u64> = entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).collect();
    Row { what: "set aside", total: lens.len(), active: 0, bytes: lens.iter().sum(), reclaimable: 0 }
}
