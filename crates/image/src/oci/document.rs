//! Manifests, indexes and configurations: JSON from anywhere, checked before it is believed.

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use serde::de::IgnoredAny;
use spec::{ImageDefaults, signal_number};

use super::checked::sha256_hex;
use super::{MAX_LAYERS, Problem, document_problem};

/// Media types of Docker's schema 2 beside OCI's.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LAYERS: [&str; 3] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// What a registry is asked for.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// What an image's name leads to.
#[derive(Debug)]
pub enum Document {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

/// What tells the kinds apart, whatever the rest is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

/// Reads a manifest or an index. What could be both is refused: two readers could take it for
/// different images.
///
/// # Errors
/// [`Problem`]: no such JSON, a kind that is not read.
pub fn parse_document(bytes: &[u8]) -> Result<Document, Problem> {
    let wrong = |e: serde_json::Error| document_problem("manifest", e);
    let kind: Kind = serde_json::from_slice(bytes).map_err(wrong)?;
    let (index, manifest) = (kind.manifests.is_some(), kind.config.is_some() || kind.layers.is_some());
    if kind.fs_layers.is_some() || kind.schema_version == Some(1) {
        return Err(Problem::NotSupported(
            "its manifest is of Docker's schema 1, which no registry should serve any more; push the image anew"
                .into(),
        ));
    }
    if index == manifest {
        let why = if index {
            "it is an index and a manifest at once"
        } else {
            "it has neither layers nor manifests"
        };
        return Err(document_problem("manifest", why));
    }
    let said = kind.media_type.unwrap_or_default();
    let says_index = said == MediaType::ImageIndex.as_ref() || said == DOCKER_LIST;
    let says_manifest = said == MediaType::ImageManifest.as_ref() || said == DOCKER_MANIFEST;
    if (index && says_manifest) || (manifest && says_index) {
        return Err(document_problem("manifest", "its media type is that of something else"));
    }
    if index {
        return Ok(Document::Index(Box::new(serde_json::from_slice(bytes).map_err(wrong)?)));
    }
    let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(wrong)?;
    check_manifest(&manifest)?;
    Ok(Document::Manifest(Box::new(manifest)))
}

fn check_manifest(manifest: &ImageManifest) -> Result<(), Problem> {
    let layers = manifest.layers();
    if layers.len() > MAX_LAYERS {
        return Err(document_problem(
            "manifest",
            format!("it has {} layers; {MAX_LAYERS} are the most", layers.len()),
        ));
    }
    sha256_hex(manifest.config().digest())?;
    for layer in layers {
        sha256_hex(layer.digest())?;
        if !is_layer(layer.media_type()) {
            return Err(Problem::NotSupported(format!(
                "it is no container image: one of its parts is `{}`; smolvm runs images whose layers are tar archives (plain, gzip or zstd)",
                shown(layer.media_type().as_ref())
            )));
        }
    }
    Ok(())
}

fn is_layer(media_type: &MediaType) -> bool {
    matches!(
        media_type,
        MediaType::ImageLayer
            | MediaType::ImageLayerGzip
            | MediaType::ImageLayerZstd
            | MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd
    ) || DOCKER_LAYERS.contains(&media_type.as_ref())
}

/// The manifest for linux/amd64 in an index. One without a platform is taken when there is no
/// other: its configuration is looked at in any case.
pub(super) fn choose(manifests: &[Descriptor]) -> Result<&Descriptor, Problem> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform().as_ref().is_some_and(|platform| {
            // x86-64-v2 is what the portable CPU is; `v1` is plain amd64.
            let variant = platform.variant().as_deref().unwrap_or("");
            *platform.os() == Os::Linux
                && *platform.architecture() == Arch::Amd64
                && matches!(variant, "" | "v1" | "v2")
        })
    };
    if let Some(found) = manifests.iter().find(fits) {
        return Ok(found);
    }
    if let [only] = manifests
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let offered = manifests.iter().filter_map(|m| m.platform().as_ref());
    let offered: Vec<String> =
        offered.take(16).map(|p| shown(&format!("{}/{}", p.os(), p.architecture()))).collect();
    let offered = if offered.is_empty() { "no platform at all".to_owned() } else { offered.join(", ") };
    Err(Problem::Platform { offered })
}

/// Reads an image's configuration, which must be for linux/amd64 and know every layer.
///
/// # Errors
/// [`Problem`].
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<ImageConfiguration, Problem> {
    let wrong = |e: serde_json::Error| document_problem("configuration", e);
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(wrong)?;
    if *config.os() != Os::Linux || *config.architecture() != Arch::Amd64 {
        let offered = shown(&format!("{}/{}", config.os(), config.architecture()));
        return Err(Problem::Platform { offered });
    }
    let known = config.rootfs().diff_ids().len();
    if known != layers {
        let why = format!("it knows {known} layers, the manifest has {layers}");
        return Err(document_problem("configuration", why));
    }
    Ok(config)
}

/// What of a configuration is honoured.
///
/// # Errors
/// [`Problem::Document`] for what cannot be meant: a stop signal that is none, a relative
/// directory.
pub fn defaults(config: &ImageConfiguration) -> Result<ImageDefaults, Problem> {
    let Some(config) = config.config() else {
        return Ok(ImageDefaults::default());
    };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let env = config.env().iter().flatten().map(|line| match line.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (line.clone(), String::new()),
    });
    let workdir = given(config.working_dir());
    if let Some(dir) = workdir.as_ref().filter(|dir| !dir.starts_with('/')) {
        return Err(document_problem(
            "configuration",
            format!("WorkingDir `{}` is not absolute", shown(dir)),
        ));
    }
    let stop_signal = match given(config.stop_signal()) {
        None => None,
        Some(word) => Some(signal_number(&word).ok_or_else(|| {
            document_problem("configuration", format!("StopSignal `{}` is no signal", shown(&word)))
        })?),
    };
    let mut ports = config.exposed_ports().clone().unwrap_or_default();
    ports.sort();
    Ok(ImageDefaults {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: env.collect(),
        user: given(config.user()),
        workdir,
        stop_signal,
        ports,
    })
}

/// Somebody else's text for a message: short and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}
