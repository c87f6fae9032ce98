//! `outdated`: machine files and machines of which there is something newer.
//!
//! Packages are compared with apt's lists as they are here, kernel and agent with this program's. A registry is
//! asked about an image only where its name is this user's own word (a file that was built here, `run IMAGE`): a
//! machine file from elsewhere makes nobody speak to a host (docs/adr/0129).

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use artifact::{Digest, MachineFile};
use build::{Lock, Part};
use image::oci::{ImageName, OciOptions};
use instance::{Instance, Phase, Record};
use serde::Serialize;
use spec::Smolfile;
use store::{Origin, Pin, Tag};

use crate::args::{Global, Outdated};
use crate::launch::Home;
use crate::resolve::{self, Source};
use crate::ui;
use crate::ui::say::{say, tell};

/// What may be outdated.
struct Subject {
    name: String,
    kind: Kind,
    file: MachineFile,
    /// What it builds on, and what keeps both in the store.
    held: Vec<Pin>,
    /// The image that the user named when it was made.
    image: Option<ImageName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    File,
    Machine,
}

#[derive(Serialize)]
struct Row {
    name: String,
    kind: Kind,
    /// What there is newer of.
    outdated: Vec<Part>,
    /// What was not looked at, and why.
    notes: Vec<String>,
    /// Something could not be found out.
    #[serde(skip)]
    failed: bool,
}

pub fn outdated(words: &Outdated, global: &Global, home: &Home) -> Result<u8> {
    std::fs::create_dir_all(&home.dirs.cache).context("making the cache directory")?;
    let subjects = match words.what.is_empty() {
        true => everything(home)?,
        false => words.what.iter().map(|word| named(word, home)).collect::<Result<_>>()?,
    };
    let options = OciOptions { cache: home.dirs.cache.clone(), registry: resolve::registry(home)? };
    let rows: Vec<Row> = subjects.iter().map(|subject| look(subject, &options)).collect();
    let found = rows.iter().any(|row| !row.outdated.is_empty());
    print(&rows, global)?;
    Ok(match rows.iter().any(|row| row.failed) {
        _ if found => 1,
        true => 125,
        false => 0,
    })
}

fn print(rows: &[Row], global: &Global) -> Result<()> {
    if global.json {
        return ui::json(&rows);
    }
    for row in rows.iter().filter(|row| !global.quiet || row.failed) {
        row.notes.iter().for_each(|note| tell!("smolvm: {}: {note}", row.name));
    }
    let old: Vec<&Row> = rows.iter().filter(|row| !row.outdated.is_empty()).collect();
    if global.quiet {
        old.iter().for_each(|row| say!("{}", row.name));
    } else if old.is_empty() {
        tell!("smolvm: nothing newer for any of {} files and machines", rows.len());
    } else {
        let of_row = |row: &&Row| row.outdated.iter().map(|part| cells(row, part)).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = old.iter().flat_map(of_row).collect();
        ui::table(&["NAME", "KIND", "PART", "HAVE", "NOW"], &lines);
        tell!(
            "smolvm: `smolvm rebuild FILE` makes a file new, `smolvm update MACHINE --to FILE` moves a machine to it"
        );
    }
    Ok(())
}

fn cells(row: &Row, part: &Part) -> Vec<String> {
    let kind = if row.kind == Kind::File { "file" } else { "machine" };
    // What a machine file says reaches the terminal escaped.
    let word = |text: &Option<String>| text.as_deref().unwrap_or("-").escape_debug().to_string();
    vec![
        row.name.clone(),
        kind.into(),
        part.name.escape_debug().to_string(),
        word(&part.have),
        word(&part.now),
    ]
}

/// Every file that a user named, and every machine that is kept or runs.
fn everything(home: &Home) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    // The built-in machine and those of images are made anew by each smolvm, when they are run.
    let ours = |tag: &Tag| tag.origin != Origin::Oci && !tag.name.starts_with(BUILT_IN);
    for tag in home.store.tags()?.into_iter().filter(ours) {
        match stored(tag.name.clone(), &tag.id, home) {
            Ok(subject) => subjects.push(subject),
            Err(error) => tell!("smolvm: {}: {error:#}", tag.name),
        }
    }
    for instance in instance::list(&home.dirs)? {
        if instance.phase() == Phase::Dead && !instance.record().is_ok_and(|record| record.kept) {
            continue;
        }
        match machine(&instance, home) {
            Ok(subject) => subjects.push(subject),
            Err(error) => tell!("smolvm: {}: {error:#}", instance.name()),
        }
    }
    Ok(subjects)
}

/// How the names begin that the built-in machine has in the store.
const BUILT_IN: &str = "builtin-";

/// A machine, a file, a name in the store: the order of `inspect`.
fn named(word: &str, home: &Home) -> Result<Subject> {
    if word.contains('/') || word.ends_with(".smolmachine") {
        let file = MachineFile::open_path(Path::new(word))?;
        return subject(word.to_owned(), Kind::File, file, home);
    }
    if spec::valid_name(word) && home.dirs.instances().join(word).is_dir() {
        return machine(&Instance::open(&home.dirs, word)?, home);
    }
    match home.store.find(word) {
        Ok(id) => stored(word.to_owned(), &id, home),
        Err(_) => bail!(
            "`{word}` is no machine (`smolvm ps -a`), no machine file (a path has a `/` or ends in .smolmachine) \
             and no name in the store (`smolvm images`)"
        ),
    }
}

fn stored(name: String, id: &Digest, home: &Home) -> Result<Subject> {
    let pin = home.store.pin(id)?;
    let mut subject = subject(name, Kind::File, pin.open()?, home)?;
    subject.held.push(pin);
    Ok(subject)
}

fn machine(instance: &Instance, home: &Home) -> Result<Subject> {
    let record: Record = instance.record()?;
    let id = record.file.parse().map_err(|_| anyhow!("the record names no machine file"))?;
    let mut subject = stored(record.name, &id, home)?;
    subject.kind = Kind::Machine;
    // `run IMAGE`: the record has the word. Of other machines it has a file's name.
    if has_tag(&id, Origin::Oci, home)?
        && let Ok(Some(Source::Image(name))) = Source::parse(&record.source)
    {
        subject.image = Some(name);
    }
    Ok(subject)
}

/// A file as what it builds on says: that one has the lock.
fn subject(name: String, kind: Kind, file: MachineFile, home: &Home) -> Result<Subject> {
    let ours = has_tag(&file.id(), Origin::Built, home)?;
    let below = home.store.parent(&file)?;
    let file = below.as_ref().map_or(Ok(file), Pin::open)?;
    let image = match ours {
        true => build::read_definition(&file)?.and_then(|definition| image(&definition)),
        false => None,
    };
    Ok(Subject { name, kind, file, held: below.into_iter().collect(), image })
}

fn has_tag(id: &Digest, origin: Origin, home: &Home) -> Result<bool> {
    Ok(home.store.tags()?.iter().any(|tag| tag.id == *id && tag.origin == origin))
}

/// The image of a definition, where it is a registry's: others lie on the host that it was built on.
fn image(definition: &Smolfile) -> Option<ImageName> {
    let name = ImageName::parse(definition.root.image.as_deref()?, Path::new("")).ok()?;
    matches!(name, ImageName::Registry(_)).then_some(name)
}

fn look(subject: &Subject, options: &OciOptions) -> Row {
    let (name, kind) = (subject.name.clone(), subject.kind);
    let mut row = Row { name, kind, outdated: Vec::new(), notes: Vec::new(), failed: false };
    let lock = match build::read_lock(&subject.file) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            row.notes.push("it says nothing of what it was made of; smolvm did not build it".into());
            return row;
        }
        Err(error) => {
            (row.notes, row.failed) = (vec![error.to_string()], true);
            return row;
        }
    };
    row.outdated = build::guest_parts(&lock);
    let definition = build::read_definition(&subject.file).ok().flatten();
    match build::package_parts(&lock, definition.as_ref(), &options.cache) {
        Ok(parts) => row.outdated.extend(parts),
        Err(error) => {
            (row.failed, row.notes) = (true, vec![format!("its packages: {error}")]);
        }
    }
    look_at_image(subject, &lock, options, &mut row);
    row
}

fn look_at_image(subject: &Subject, lock: &Lock, options: &OciOptions, row: &mut Row) {
    if lock.image.is_none() {
        return;
    }
    let Some(name) = &subject.image else {
        row.notes
            .push("no registry is asked for its image: it was not built here, or not of a registry's".into());
        return;
    };
    match build::image_part(lock, name, options) {
        Ok(part) => row.outdated.extend(part),
        Err(error) => {
            row.failed = true;
            row.notes.push(error.to_string());
        }
    }
}
