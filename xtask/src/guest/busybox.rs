//! `busybox`: the built-in machine's userland, from Debian's `busybox-static`, as it is.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::build_info::BuildInfo;
use super::cache;
use super::debian::Candidate;
use crate::paths::Paths;

const PACKAGE: &str = "busybox-static";

/// Packages that this recipe was tried with: (version, SHA-256).
const TRIED: &[(&str, &str)] =
    &[("1:1.35.0-4+deb12u1+b1", "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744")];

/// Publishes `busybox`.
pub fn build(paths: &Paths, info: &mut BuildInfo) -> Result<()> {
    let package = Candidate::find(PACKAGE)?;
    package.warn_if_new(TRIED);
    let key = cache::Inputs::default().add("package", &package.sha256).key();
    let dir = cache::get_or_make(&paths.cache, "busybox", &key, |dir| {
        let tree = dir.join("tree");
        package.unpack(&paths.cache, &tree)?;
        // bin/ in Debian 12, usr/bin/ from 13 on.
        let binary = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|name| tree.join(name))
            .find(|path| path.is_file())
            .context("the busybox-static package holds no bin/busybox")?;
        fs::rename(&binary, dir.join("busybox")).context("cannot keep busybox")?;
        cache::remove_dir(&tree)
    })?;
    let busybox = cache::read(&dir.join("busybox"))?;
    ensure!(busybox.starts_with(b"\x7fELF\x02"), "Debian's busybox is not a 64-bit ELF program");
    cache::publish(&busybox, &paths.guest.join("busybox"))?;
    info.set_part("busybox", &busybox);
    info.set("busybox_package", format!("{PACKAGE} {}", package.version));
    info.set("busybox_package_sha256", &package.sha256);
    Ok(())
}
