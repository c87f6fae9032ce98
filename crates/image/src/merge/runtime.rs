//! Directories below /run that a root's packages ask for in tmpfiles.d(5): a place for a socket, a pid file.
//!
//! On a usual system systemd-tmpfiles makes them at each boot. In a machine nothing does; its agent makes what the image
//! has below /run (docs/adr/0042), so they are put there. Only lines that make a directory are heeded (`d`, `D`), and of
//! paths only those below /run that are written out, without specifiers.

use std::collections::BTreeMap;

use crate::content::Content;
use crate::tree::{Item, Kind, Meta, OnSymlink, Time, Tree};

/// Where configuration is, the first place of a file's name winning.
const PLACES: [&str; 3] = ["etc/tmpfiles.d", "usr/local/lib/tmpfiles.d", "usr/lib/tmpfiles.d"];
/// Most bytes that are read of one file, in either kind.
const FILE_LIMIT: u64 = 1 << 20;
/// Most directories that are made: the agent makes no more either.
const DIRECTORIES: usize = 256;

/// Makes the directories that are not there yet, as of `time`.
pub fn make_directories(tree: &mut Tree, time: Time) {
    let users = Names::read(tree, "etc/passwd");
    let groups = Names::read(tree, "etc/group");
    let texts: Vec<String> = files(tree).values().filter_map(text).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    let wanted = lines.filter_map(|line| Directory::parse(line, &users, &groups));
    for Directory { path, mode, uid, gid } in wanted.take(DIRECTORIES).collect::<Vec<_>>() {
        if tree.lookup(&path).is_none() {
            let meta = Meta { uid, gid, mtime: time, ..Meta::root_owned(mode) };
            // A path that cannot be placed is one that the package could not have made either.
            let _ = tree.insert(&path, Item::Dir, meta, OnSymlink::Keep);
        }
    }
}

/// The configuration files by name, which is their order.
fn files(tree: &Tree) -> BTreeMap<Vec<u8>, Content> {
    let mut files = BTreeMap::new();
    for place in PLACES {
        let Some(dir) = tree.lookup(place) else { continue };
        for (name, id) in tree.children(dir).filter(|(name, _)| name.ends_with(b".conf")) {
            let content = match tree.get(id).map(|node| node.kind()) {
                Some(Kind::File(content)) => content.clone(),
                // A link to /dev/null takes a file of that name away.
                _ => Content::empty(),
            };
            files.entry(name.to_vec()).or_insert(content);
        }
    }
    files
}

fn text(content: &Content) -> Option<String> {
    let bytes = content.to_vec(FILE_LIMIT).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Numbers of users or groups by name.
struct Names(BTreeMap<String, u32>);

impl Names {
    fn read(tree: &Tree, path: &str) -> Self {
        let node = tree.lookup(path).and_then(|id| tree.get(id));
        let text = match node.map(|node| node.kind()) {
            Some(Kind::File(content)) => text(content).unwrap_or_default(),
            _ => String::new(),
        };
        let entry = |line: &str| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    /// `-` is root; a number is itself.
    fn number(&self, word: &str) -> Option<u32> {
        match word {
            "-" => Some(0),
            word => self.0.get(word).copied().or_else(|| word.parse().ok()),
        }
    }
}

struct Directory {
    path: String,
    mode: u16,
    uid: u32,
    gid: u32,
}

impl Directory {
    /// A line: type, path, mode, user, group, and more that is not for us.
    fn parse(line: &str, users: &Names, groups: &Names) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next()?;
        // What may follow the letter says when, and what to do about failures.
        if !kind.starts_with(['d', 'D']) || !kind[1..].chars().all(|c| "+!-=~^$".contains(c)) {
            return None;
        }
        let path = words.next()?;
        let path = path.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(path);
        let below = path.strip_prefix("/run/")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+@/".contains(c);
        if !below.chars().all(plain) || below.split('/').any(|name| name == "..") {
            return None;
        }
        let mut word = || words.next().unwrap_or("-").trim_start_matches(['~', ':']);
        let mode = match word() {
            "-" => 0o755,
            mode => u16::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777)?,
        };
        let (uid, gid) = (users.number(word())?, groups.number(word())?);
        Some(Self { path: format!("run/{below}"), mode, uid, gid })
    }
}
