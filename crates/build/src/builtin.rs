//! The machine that needs no definition: busybox and the agent.

use artifact::SectionKind;
use image::tree::{Item, Meta, OnSymlink};
use image::{Content, ErofsOptions, Limits, Tree, TreeError};
use instance::{Media, Vmm, VmmOptions, built_in_spec};
use store::{Origin, Pin, Store};

use crate::base::{self, BaseParts, RootSource};
use crate::error::Error;
use crate::layout;
use crate::lock::Lock;
use crate::progress::Progress;

/// Commands that busybox answers to, one a line (`busybox --list` of the embedded version).
const APPLETS: &str = include_str!("applets.txt");

const EROFS_UUID: &[u8; 16] = b"smolvm-built-in!";

const DIRS: [(&str, u16); 22] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 5] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hostname", "smolvm\n"),
    ("etc/profile", "export PS1='\\u@\\h:\\w\\$ '\n"),
    ("etc/os-release", "ID=smolvm\nNAME=smolvm\nPRETTY_NAME=\"smolvm built-in machine\"\n"),
];

/// Puts the built-in root into an empty tree.
pub(crate) fn fill(tree: &mut Tree) -> Result<(), TreeError> {
    let mut put = |path: &str, item: Item, mode: u16| {
        tree.insert(path, item, Meta::root_owned(mode), OnSymlink::Replace).map(drop)
    };
    for (path, mode) in DIRS {
        put(path, Item::Dir, mode)?;
    }
    for (path, text) in FILES {
        put(path, Item::File(Content::bytes(text.as_bytes().to_vec())), 0o644)?;
    }
    put("bin/busybox", Item::File(Content::bytes(assets::busybox())), 0o755)?;
    for applet in APPLETS.lines().filter(|a| !a.is_empty() && *a != "busybox") {
        put(&format!("bin/{applet}"), Item::Symlink(b"busybox".to_vec().into()), 0o777)?;
    }
    image::furnish(tree)
}

/// The name in the store of the frozen built-in machine of this smolvm.
pub fn built_in_tag() -> String {
    tag_of(&inputs())
}

fn tag_of(inputs: &[String]) -> String {
    let digest = artifact::hash::Digest::of(inputs.join("\n").as_bytes()).to_string();
    format!("builtin-{}-{}", env!("CARGO_PKG_VERSION"), digest.get(..12).unwrap_or_default())
}

/// Everything that decides what the built-in machine is, beside this program's version: what it is made of, how it
/// is booted, and the encoding that it is kept in.
fn inputs() -> Vec<String> {
    let mut inputs: Vec<String> = assets::build_info().iter().map(|(k, v)| format!("{k}={v}")).collect();
    inputs.push(format!("command_line={}", machine::COMMAND_LINE));
    inputs.push(format!("spec={:?}", built_in_spec()));
    inputs.push(format!("dirs={DIRS:?}"));
    inputs.push(format!("files={FILES:?}"));
    inputs.push(format!("applets={APPLETS}"));
    inputs.push(format!("furnished={}", image::FURNISHED));
    inputs.push(format!("memory_map={}", artifact::ExtentMap::VERSION));
    inputs.push(format!("root={EROFS_UUID:?}"));
    inputs
}

/// The built-in machine, frozen, if the store has it.
///
/// # Errors
/// The store's.
pub fn built_in_ready(store: &Store) -> Result<Option<Pin>, Error> {
    let found = store.resolve(&built_in_tag())?;
    Ok(found.and_then(|found| store.pin(&found.id).ok()))
}

/// The built-in machine, frozen, from the store; booted and frozen into it the first time.
///
/// # Errors
/// What stands in the way of booting it.
pub fn built_in(store: &Store, options: &VmmOptions, progress: &dyn Progress) -> Result<Pin, Error> {
    if let Some(pin) = built_in_ready(store)? {
        return Ok(pin);
    }
    let tag = built_in_tag();
    progress.step("booting the built-in machine, once");
    let mut tree = Tree::new(Limits::default());
    fill(&mut tree)?;
    let spec = built_in_spec();
    let lock = Lock::new("built-in".into());
    let erofs = ErofsOptions { uuid: *EROFS_UUID, build_time: image::tree::Time::default() };
    let root = RootSource::Tree(&tree, erofs);
    let base = base::write(store, &BaseParts { spec: &spec, root, kernel: None, lock: &lock })?;
    let media = Media::open(base)?;
    let (vmm, _) = Vmm::boot(&media, None, options.clone())?;
    progress.step("freezing it");
    crate::stage::warm_up(&vmm)?;
    let frozen = layout::freeze(&vmm, &media, options, &options.scratch_dir.join("frozen"), progress)?;
    let mut object = store.begin_object(None)?;
    frozen.write(&mut object.writer)?;
    let pin = object.finish()?;
    debug_assert!(media.file.section(SectionKind::RootImage).is_some());
    store.tag(&tag, &pin.id(), Origin::Built)?;
    Ok(pin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_every_input() {
        let whole = inputs();
        for what in
            [machine::COMMAND_LINE, "vmlinux_blake3", "initramfs_blake3", "busybox_blake3", "etc/passwd"]
        {
            assert!(whole.iter().any(|input| input.contains(what)), "{what} is no input");
        }
        for changed in 0..whole.len() {
            let mut other = whole.clone();
            other[changed].push('x');
            assert_ne!(tag_of(&other), tag_of(&whole), "{}", whole[changed]);
        }
    }
}
