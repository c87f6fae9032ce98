//! Names for objects.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use artifact::Digest;

use crate::error::{Error, Result};
use crate::root::Store;

/// No name is longer, in bytes.
const MAX_NAME: usize = 80;

/// The shortest beginning of an id that [`Store::find`] takes.
const MIN_PREFIX: usize = 4;

/// Where a named machine came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `build`, `snapshot`, or the built-in machine.
    Built,
    /// A user's file.
    Imported,
    /// An OCI image that was converted.
    Oci,
}

impl Origin {
    const ALL: [(Origin, &str); 3] =
        [(Origin::Built, "built"), (Origin::Imported, "imported"), (Origin::Oci, "oci")];

    fn word(self) -> &'static str {
        Origin::ALL.iter().find(|(origin, _)| *origin == self).map_or("", |(_, word)| word)
    }
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The name.
    pub name: String,
    /// The object.
    pub id: Digest,
    /// Where it came from.
    pub origin: Origin,
    /// When the name was given.
    pub since: SystemTime,
}

/// Whether a text can be a name: starts with a letter or digit, goes on with those and `. _ - / : @`, at most
/// 80 bytes, so that references of OCI images are names, too.
pub fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte));
    if starts && goes_on && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Error::BadName { name: name.to_owned() })
}

impl Store {
    /// Gives an object a name, which it takes from another that has it.
    pub fn tag(&self, name: &str, id: &Digest, origin: Origin) -> Result<()> {
        check_name(name)?;
        // Held until the name is there, so that nobody prunes it in between.
        let _pin = self.pin(id)?;
        let text = format!("{id} {}\n", origin.word());
        self.put("tags", &file_name(name), text.as_bytes(), true)
    }

    /// What a name stands for.
    pub fn resolve(&self, name: &str) -> Result<Option<Tag>> {
        check_name(name)?;
        let path = self.tag_path(name);
        let read = || Ok((fs::read_to_string(&path)?, fs::metadata(&path)?.modified()?));
        let (text, since) = match read() {
            Ok(read) => read,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(Error::io(&path, "read it", error)),
        };
        // A damaged one stands for nothing; giving the name again mends it.
        Ok(parse(&text).map(|(id, origin)| Tag { name: name.to_owned(), id, origin, since }))
    }

    /// The object that a user means: by name, by id, or by the beginning of an id (4 digits or more).
    pub fn find(&self, what: &str) -> Result<Digest> {
        if let Ok(Some(tag)) = self.resolve(what) {
            return Ok(tag.id);
        }
        let hex = what.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let mut found = None;
        if hex && what.len() >= MIN_PREFIX {
            for id in self.ids()?.into_iter().filter(|id| id.to_string().starts_with(what)) {
                if found.replace(id).is_some() {
                    return Err(Error::Ambiguous { prefix: what.to_owned() });
                }
            }
        }
        found.ok_or_else(|| Error::NoSuchName { name: what.to_owned() })
    }

    /// Every name, sorted.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        let names = self.names_in("tags")?;
        let mut tags: Vec<Tag> = names
            .iter()
            .filter_map(|file| name_of(file))
            .filter_map(|name| self.resolve(&name).ok().flatten())
            .collect();
        tags.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tags)
    }

    /// Takes a name away; whether it was there. The object stays: see [`Store::remove`].
    pub fn untag(&self, name: &str) -> Result<bool> {
        check_name(name)?;
        let path = self.tag_path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(Error::io(&path, "remove it", error)),
        }
    }

    fn tag_path(&self, name: &str) -> PathBuf {
        self.part("tags").join(file_name(name))
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// The name as a file's: `/ : @` as `%` and two digits. At most 3 × 80 bytes, below every file system's 255.
fn file_name(name: &str) -> String {
    let mut file = String::new();
    for c in name.chars() {
        match c {
            '/' | ':' | '@' => file.push_str(&format!("%{:02x}", c as u32)),
            _ => file.push(c),
        }
    }
    file
}

/// The name of a file in `tags/`.
pub(crate) fn name_of(file: &str) -> Option<String> {
    let name = file.replace("%2f", "/").replace("%3a", ":").replace("%40", "@");
    (file_name(&name) == file).then_some(name)
}

fn parse(text: &str) -> Option<(Digest, Origin)> {
    let (id, word) = text.strip_suffix('\n')?.split_once(' ')?;
    let (origin, _) = Origin::ALL.into_iter().find(|(_, known)| *known == word)?;
    Some((id.parse().ok()?, origin))
}
