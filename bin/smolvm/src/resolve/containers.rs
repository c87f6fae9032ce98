//! Container images and plain roots named on the command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use build::{PlainRoot, image_base, plain_base};
use image::oci::{Certificates, Credentials, ImageName, OciOptions, RegistryOptions};
use store::Pin;

use super::config::Config;
use crate::launch::Home;
use crate::ui::Steps;

/// What a WHAT that is no machine file names.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    Image(ImageName),
    Dir(PathBuf),
    /// A tar on standard input.
    Stdin,
}

impl Source {
    /// Reads a word that is a transport (`oci:`, `docker-archive:`, `docker://`, `dir:`, `-`) or a
    /// reference; None for other words.
    ///
    /// # Errors
    /// A transport whose rest is none.
    pub fn parse(word: &str) -> Result<Option<Self>> {
        if word == "-" {
            return Ok(Some(Self::Stdin));
        }
        if let Some(dir) = word.strip_prefix("dir:").map(Path::new)
            && !ImageName::is_skopeo_dir(dir)
        {
            return Ok(Some(Self::Dir(dir.to_owned())));
        }
        let transport = ["oci:", "docker-archive:", "dir:", "docker://"].iter().any(|t| word.starts_with(t));
        let path = word.starts_with(['/', '.']) || word.ends_with(".smolmachine");
        match ImageName::parse(word, Path::new("")) {
            Ok(name) if transport || !path => Ok(Some(Self::Image(name))),
            Err(error) if transport => Err(error.into()),
            _ => Ok(None),
        }
    }

    /// The machine's base in the store, made when it is not there.
    ///
    /// # Errors
    /// The image's, with its name, layer and registry.
    pub fn base(&self, home: &Home, steps: &Steps) -> Result<Pin> {
        let cache = &home.dirs.cache;
        std::fs::create_dir_all(cache).context("making the cache directory")?;
        let pin = match self {
            Self::Image(name) => {
                let oci = OciOptions { cache: cache.clone(), registry: registry(home)? };
                image_base(&home.store, name, &oci, steps)?
            }
            Self::Dir(dir) => plain_base(&home.store, PlainRoot::Dir(dir), cache, steps)?,
            Self::Stdin => plain_base(&home.store, PlainRoot::Tar(Box::new(std::io::stdin())), cache, steps)?,
        };
        Ok(pin)
    }

    /// As the user called it.
    pub fn label(&self) -> String {
        match self {
            Self::Image(name) => name.to_string(),
            Self::Dir(dir) => format!("dir:{}", dir.display()),
            Self::Stdin => "-".to_owned(),
        }
    }
}

/// How registries are asked: docker's credentials, certificates of certs.d, config.toml's mirrors.
///
/// # Errors
/// A config.toml that cannot be read.
pub fn registry(home: &Home) -> Result<RegistryOptions> {
    let config = Config::read(&home.dirs)?;
    let mirrors = config.registries.into_iter().map(|(name, of)| (name, of.mirrors)).collect();
    Ok(RegistryOptions {
        credentials: Credentials::from_env(|name| std::env::var_os(name)),
        certificates: Certificates::from_env(|name| std::env::var_os(name)),
        mirrors,
    })
}
