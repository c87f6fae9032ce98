//! What programs expect in /etc of any root and images leave to whoever runs them.
//!
//! Container runtimes and init systems put these there at each start; here it is part of the root, so that a machine's
//! own changes stay apart from it.

use crate::content::Content;
use crate::tree::{Item, Kind, Meta, OnSymlink, Tree, TreeError};

/// Counts up with every change of what is put there: results of earlier builds are kept under names with it.
pub const FURNISHED: u32 = 1;
/// The guest's name where nothing else was asked for: `CONFIG_DEFAULT_HOSTNAME` of the guest's kernel.
const HOST_NAME: &str = "smolvm";
/// Its address as Debian has it (Debian Reference, 5.1.1): of this host, and no interface's.
const HOST_ADDRESS: &str = "127.0.1.1";
const LOCAL: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
/// Most bytes of an image's /etc/hosts that are added to. Larger ones are left as they are.
const HOSTS_LIMIT: u64 = 1 << 20;

/// Makes /etc/mtab (a link to /proc/self/mounts, as in mount(8)) where a root has none, and sees to it that /etc/hosts
/// knows `localhost` and the guest's name. What an image has otherwise stays. A root whose /etc is no directory is
/// left alone.
///
/// # Errors
/// A limit of the tree.
pub fn furnish(tree: &mut Tree) -> Result<(), TreeError> {
    match tree.lookup_follow("etc") {
        Some(etc) if !tree.get(etc).is_some_and(|node| node.is_dir()) => return Ok(()),
        // A link of that name to nowhere.
        None if tree.lookup("etc").is_some() => return Ok(()),
        _ => {}
    }
    if tree.lookup("etc/mtab").is_none() {
        put(tree, "etc/mtab", Item::Symlink(b"/proc/self/mounts"[..].into()), 0o777)?;
    }
    hosts(tree)
}

fn hosts(tree: &mut Tree) -> Result<(), TreeError> {
    let name = format!("{HOST_ADDRESS}\t{HOST_NAME}\n");
    let Some(id) = tree.lookup_follow("etc/hosts") else {
        // Also in the place of a link to nowhere.
        return put(tree, "etc/hosts", file(LOCAL.to_owned() + &name), 0o644);
    };
    let Some(Kind::File(content)) = tree.get(id).map(|node| node.kind()) else { return Ok(()) };
    let Ok(mut text) = content.to_vec(HOSTS_LIMIT) else { return Ok(()) };
    if text.is_empty() {
        text.extend_from_slice(LOCAL.as_bytes());
    }
    if names(&text).any(|word| word == HOST_NAME.as_bytes()) {
        return Ok(());
    }
    if !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(name.as_bytes());
    tree.set_content(id, Content::bytes(text)).map(drop)
}

/// Every name that hosts(5) in `text` gives an address.
fn names(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = text.split(|byte| *byte == b'\n');
    let said = lines.filter_map(|line| line.split(|byte| *byte == b'#').next());
    said.flat_map(|line| {
        line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty()).skip(1)
    })
}

fn file(text: String) -> Item {
    Item::File(Content::bytes(text.into_bytes()))
}

fn put(tree: &mut Tree, path: &str, item: Item, mode: u16) -> Result<(), TreeError> {
    tree.insert(path, item, Meta::root_owned(mode), OnSymlink::Replace).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_is_the_kernels() {
        let config = include_str!("../../../guest/kernel/config");
        assert!(config.contains(&format!("CONFIG_DEFAULT_HOSTNAME=\"{}\"", super::HOST_NAME)));
    }
}
