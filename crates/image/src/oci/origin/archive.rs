//! What `docker save` writes: a tar with manifest.json, a configuration and a tar a layer.
//!
//! The archive is gone over once for the places of its members; a compressed one is expanded
//! into an unnamed file first. It has no manifest in the image specification's sense, so one is
//! made up from what is there: the same archive gives the same manifest and thereby digest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest, ImageManifestBuilder, MediaType};
use serde::Deserialize;

use super::super::checked::{Checked, digest_of};
use super::super::document::shown;
use super::super::reference::Reference;
use super::super::{MAX_DOCUMENT, MAX_LAYERS, Problem, document_problem, failed};
use super::{Origin, open_regular, read_document};
use crate::archive::{ArchiveError, EntryKind, TarReader, decompress};
use crate::content::Content;
use crate::tree::normal;

/// Most bytes of an archive once it is expanded, and most members.
const MAX_EXPANDED: u64 = 64 << 30;
const MAX_MEMBERS: usize = 100_000;

/// An archive with one image chosen.
pub(in super::super) struct DockerArchive {
    manifest: Vec<u8>,
    blobs: HashMap<String, Content>,
}

/// manifest.json of an archive (moby/docker-image-spec, "Combined Image JSON").
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A member of the archive.
enum Member {
    File(Content),
    /// Old versions link equal layers.
    Link(Vec<u8>),
}

type Members = HashMap<Vec<u8>, Member>;

impl DockerArchive {
    /// Opens the archive `path`; `scratch` takes it when it is compressed.
    pub(in super::super) fn open(path: &Path, name: Option<&str>, scratch: &Path) -> Result<Self, Problem> {
        let file = Arc::new(expanded(path, scratch)?);
        let members = members(&file)?;
        let json = member(&members, b"manifest.json").ok_or_else(|| Problem::Missing {
            what: format!("manifest.json in {}", path.display()),
            advice: "`docker save IMAGE -o FILE` writes one; a root's tar is `tar`".into(),
        })?;
        let json = small("manifest.json", json)?;
        let all: Vec<Saved> =
            serde_json::from_slice(&json).map_err(|e| document_problem("manifest.json", e))?;
        Self::assemble(chosen(&all, name)?, &members)
    }

    fn assemble(saved: &Saved, members: &Members) -> Result<Self, Problem> {
        if saved.layers.len() > MAX_LAYERS {
            return Err(document_problem("manifest.json", "it has too many layers"));
        }
        let find = |name: &str| {
            member(members, name.as_bytes()).ok_or_else(|| {
                document_problem(
                    "manifest.json",
                    format!("it names `{}`, which is not in the archive", shown(name)),
                )
            })
        };
        let config = find(&saved.config)?;
        let text = small("configuration", config)?;
        let mut blobs = HashMap::from([(digest_of(&text), config.clone())]);
        // The name is the digest, in both forms that there were.
        let stem = saved.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
        if stem.len() == 64 {
            super::super::checked::verify("the configuration", &text, &format!("sha256:{stem}"))?;
        }
        let mut layers = Vec::new();
        for name in &saved.layers {
            let content = find(name)?;
            let digest = Checked::new(content.reader(), u64::MAX)
                .digest()
                .map_err(|e| document_problem("archive", e))?;
            layers.push(descriptor(MediaType::ImageLayer, &digest, content.len())?);
            blobs.insert(digest, content.clone());
        }
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &digest_of(&text), text.len() as u64)?)
            .layers(layers)
            .build()
            .map_err(|e| document_problem("manifest", e))?;
        let manifest = serde_json::to_vec(&manifest).map_err(|e| document_problem("manifest", e))?;
        Ok(Self { manifest, blobs })
    }
}

impl Origin for DockerArchive {
    fn find(&self, _digest: Option<&str>) -> Result<Vec<u8>, Problem> {
        Ok(self.manifest.clone())
    }

    fn document(&self, _wanted: &Descriptor) -> Result<Vec<u8>, Problem> {
        Err(document_problem("manifest", "an archive has no index"))
    }

    fn blob(&self, wanted: &Descriptor) -> Result<Box<dyn Read + Send + '_>, Problem> {
        let found = self.blobs.get(wanted.digest().as_ref());
        let content = found.ok_or_else(|| document_problem("archive", "a layer is not in it"))?;
        Ok(Box::new(content.reader()))
    }
}

fn descriptor(media_type: MediaType, digest: &str, size: u64) -> Result<Descriptor, Problem> {
    let digest = Digest::try_from(digest).map_err(|e| document_problem("archive", e))?;
    Ok(Descriptor::new(media_type, size, digest))
}

fn chosen<'a>(all: &'a [Saved], name: Option<&str>) -> Result<&'a Saved, Problem> {
    let tags = |saved: &'a Saved| saved.repo_tags.iter().flatten();
    let found = match name {
        // docker writes `app:1` where skopeo writes `docker.io/library/app:1`, and `app` means `app:latest`.
        Some(name) => {
            let wanted = Reference::parse(name).ok();
            let same = |tag: &str| tag == name || wanted.is_some() && Reference::parse(tag).ok() == wanted;
            all.iter().find(|saved| tags(saved).any(|tag| same(tag)))
        }
        None => all.first().filter(|_| all.len() == 1),
    };
    found.ok_or_else(|| {
        let names: Vec<String> = all.iter().flat_map(tags).take(16).map(|t| shown(t)).collect();
        Problem::Missing {
            what: match name {
                Some(name) => format!("`{}` in the archive", shown(name)),
                None => "single image in the archive".into(),
            },
            advice: format!("name one as docker-archive:FILE:NAME; there are {}", names.join(", ")),
        }
    })
}

/// The archive as a file that is not compressed.
fn expanded(path: &Path, scratch: &Path) -> Result<File, Problem> {
    let mut file = open_regular(path)?;
    let mut start = Vec::new();
    file.by_ref().take(512).read_to_end(&mut start).map_err(failed("reading", path))?;
    file.rewind().map_err(failed("reading", path))?;
    if start.get(257..262) == Some(b"ustar") {
        return Ok(file);
    }
    let mut plain = tempfile::tempfile_in(scratch).map_err(failed("making a temporary file in", scratch))?;
    let mut limited = Checked::new(decompress(file)?, MAX_EXPANDED);
    let copied = io::copy(&mut limited, &mut plain);
    if limited.exceeded() {
        return Err(Problem::Bomb { limit: MAX_EXPANDED, packed: path.metadata().map_or(0, |m| m.len()) });
    }
    copied.map_err(failed("expanding", path))?;
    plain.rewind().map_err(failed("reading", path))?;
    Ok(plain)
}

fn members(file: &Arc<File>) -> Result<Members, Problem> {
    let reader = file.try_clone().map_err(|e| Problem::Archive(ArchiveError::Io(e)))?;
    let mut tar = TarReader::new(BufReader::with_capacity(256 << 10, reader));
    let mut members = Members::new();
    while let Some(entry) = tar.next_entry()? {
        let Some(path) = normal(&entry.path) else { continue };
        let member = match entry.kind {
            EntryKind::File => Member::File(Content::range(file.clone(), tar.position(), entry.size, None)),
            EntryKind::HardLink(target) => Member::Link(target),
            EntryKind::Symlink(target) => Member::Link(beside(&path, &target)),
            _ => continue,
        };
        members.insert(path, member);
        if members.len() > MAX_MEMBERS {
            return Err(document_problem("archive", format!("it has more than {MAX_MEMBERS} members")));
        }
    }
    Ok(members)
}

/// The member that a symbolic link at `path` names: `ID/layer.tar` → `../OTHER/layer.tar`.
fn beside(path: &[u8], target: &[u8]) -> Vec<u8> {
    let above = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
    let mut names: Vec<&[u8]> = path[..above].split(|b| *b == b'/').collect();
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            part => names.push(part),
        }
    }
    names.join(&b'/')
}

fn member<'a>(members: &'a Members, path: &[u8]) -> Option<&'a Content> {
    let mut path = normal(path)?;
    for _ in 0..8 {
        match members.get(&path)? {
            Member::File(content) => return Some(content),
            Member::Link(target) => path = normal(target)?,
        }
    }
    None
}

fn small(what: &'static str, content: &Content) -> Result<Vec<u8>, Problem> {
    if content.len() > MAX_DOCUMENT {
        return Err(document_problem(what, format!("it is larger than {} MiB", MAX_DOCUMENT >> 20)));
    }
    read_document(what, content.reader())
}
