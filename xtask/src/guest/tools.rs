//! The programs that a kernel build needs: found, installed (as root), or unpacked beside the build.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::debian::{Candidate, is_root};
use super::{cache, say};
use crate::run;

/// A need and the Debian package that fills it.
enum Need {
    Program(&'static str, &'static str),
    Header(&'static str, &'static str),
}

const NEEDS: &[Need] = &[
    Need::Program("gcc", "gcc"),
    Need::Program("ld", "binutils"),
    Need::Program("make", "make"),
    Need::Program("xz", "xz-utils"),
    Need::Program("bc", "bc"),
    Need::Program("flex", "flex"),
    Need::Program("bison", "bison"),
    Need::Program("mke2fs", "e2fsprogs"),
    Need::Header("libelf.h", "libelf-dev"),
    Need::Header("stdlib.h", "libc6-dev"),
];

/// Packages that can be used from any directory, with what they need of each other. The rest (a
/// compiler above all) has to be installed.
const UNPACKABLE: &[(&str, &[&str])] = &[
    ("flex", &["flex", "m4", "libfl2"]),
    ("bison", &["bison", "m4"]),
    ("libelf-dev", &["libelf-dev", "libelf1", "zlib1g-dev"]),
    ("bc", &["bc"]),
];

/// The environment in which the build's programs are found.
#[derive(Default)]
pub struct Tools {
    variables: Vec<(&'static str, OsString)>,
}

impl Tools {
    /// Makes sure that everything is there: installs with apt as root, else unpacks locally.
    pub fn ready(cache_dir: &Path) -> Result<Tools> {
        let missing = missing();
        if missing.is_empty() {
            return Ok(Tools::default());
        }
        if is_root() {
            say(&format!("installing {}", missing.join(" ")));
            Candidate::find(missing[0])?; // refreshes the lists when they are empty
            let mut install = Command::new("apt-get");
            install.env("DEBIAN_FRONTEND", "noninteractive");
            // A fresh machine's unattended upgrade may be at work: wait for it.
            install.args([
                "-qq",
                "-o",
                "DPkg::Lock::Timeout=600",
                "install",
                "--yes",
                "--no-install-recommends",
            ]);
            run::status(install.args(&missing))?;
            return Ok(Tools::default());
        }
        unpack_locally(&missing, cache_dir)
    }

    /// Gives a command this environment.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.variables.iter().map(|(key, value)| (key, value)))
    }
}

fn missing() -> Vec<&'static str> {
    let is_there = |need: &Need| match need {
        Need::Program(name, _) => run::find_program(name).is_some(),
        Need::Header(name, _) => Path::new("/usr/include").join(name).is_file(),
    };
    let package = |need: &Need| match need {
        Need::Program(_, package) | Need::Header(_, package) => *package,
    };
    NEEDS.iter().filter(|need| !is_there(need)).map(package).collect()
}

fn unpack_locally(missing: &[&str], cache_dir: &Path) -> Result<Tools> {
    let mut packages = Vec::new();
    for name in missing {
        match UNPACKABLE.iter().find(|(package, _)| package == name) {
            Some((_, parts)) => packages.extend_from_slice(parts),
            None => bail!(
                "the guest's kernel needs programs that are not here: run `apt-get install {}` as root",
                missing.join(" ")
            ),
        }
    }
    packages.sort_unstable();
    packages.dedup();
    let candidates = packages.iter().map(|name| Candidate::find(name)).collect::<Result<Vec<_>>>()?;
    let mut inputs = cache::Inputs::default();
    for candidate in &candidates {
        inputs = inputs.add(&candidate.name, &candidate.sha256);
    }
    let dir = cache::get_or_make(cache_dir, "tools", &inputs.key(), |dir| {
        say(&format!("unpacking build tools: {}", packages.join(" ")));
        candidates.iter().try_for_each(|candidate| candidate.unpack(cache_dir, dir))
    })?;
    Ok(environment(&dir))
}

fn environment(dir: &Path) -> Tools {
    let usr = dir.join("usr");
    let library = usr.join("lib").join(format!("{}-linux-gnu", env::consts::ARCH));
    let joined = |variable: &str, ours: Vec<PathBuf>| {
        let old = env::var_os(variable).unwrap_or_default();
        let old: Vec<_> = env::split_paths(&old).filter(|path| path.is_absolute()).collect();
        env::join_paths(ours.into_iter().chain(old)).unwrap_or_default()
    };
    Tools {
        variables: vec![
            ("PATH", joined("PATH", vec![usr.join("bin")])),
            ("C_INCLUDE_PATH", joined("C_INCLUDE_PATH", vec![usr.join("include")])),
            ("LIBRARY_PATH", joined("LIBRARY_PATH", vec![library.clone()])),
            ("LD_LIBRARY_PATH", joined("LD_LIBRARY_PATH", vec![library])),
            ("BISON_PKGDATADIR", usr.join("share/bison").into()),
            ("M4", usr.join("bin/m4").into()),
        ],
    }
}
