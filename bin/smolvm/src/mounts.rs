//! `-v SRC:DST[:ro]`: what is mounted in the guest beside its own disk.
//!
//! Problem: one flag means two things, as with docker: a folder (or file) of this host, or a volume by
//! its name. Strategy: the spelling of the source alone decides, never what happens to exist: a source
//! with a `/` or `.` in it is a place on this host, any other word is a volume. So a volume's name has
//! neither. Invariant: every destination is absolute and plain, hides no part of the system, and is
//! there once.
//!
//! Next: `cmd/run.rs` (the flag), `launch.rs` (what becomes of it).

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Places in the guest that are the agent's.
const SYSTEM: [&str; 4] = ["/proc", "/sys", "/dev", "/run/smolvm"];

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mount {
    /// A folder or file of this host, as it was written.
    Folder { host: PathBuf, guest: String, read_only: bool },
    /// A volume.
    Volume { name: String, guest: String, read_only: bool },
}

impl Mount {
    /// Where it is in the guest: absolute, without `.`, `..` or a `/` at its end.
    pub fn guest(&self) -> &str {
        match self {
            Mount::Folder { guest, .. } | Mount::Volume { guest, .. } => guest,
        }
    }
}

/// The folders among them.
pub fn folders(mounts: &[Mount]) -> Vec<instance::SharedFolder> {
    let folder = |mount: &Mount| match mount {
        Mount::Folder { host, guest, read_only } => {
            let (host, guest, read_only) = (host.clone(), guest.clone(), *read_only);
            Some(instance::SharedFolder { host, guest, read_only })
        }
        Mount::Volume { .. } => None,
    };
    mounts.iter().filter_map(folder).collect()
}

/// The same with every folder's whole path: whoever starts the machine again may stand elsewhere.
fn absolute(mount: Mount) -> Result<Mount> {
    match mount {
        Mount::Folder { host, guest, read_only } => {
            let whole = std::path::absolute(&host)
                .with_context(|| format!("finding {} from here", host.display()))?;
            Ok(Mount::Folder { host: whole, guest, read_only })
        }
        volume => Ok(volume),
    }
}

/// Reads every `-v` of a command line.
///
/// # Errors
/// Words that are no mount; two mounts at one place.
pub fn parse_all(words: &[String]) -> Result<Vec<Mount>> {
    let mounts: Vec<Mount> =
        words.iter().map(|word| parse(word).and_then(absolute)).collect::<Result<_>>()?;
    for (at, mount) in mounts.iter().enumerate() {
        if mounts.iter().take(at).any(|other| other.guest() == mount.guest()) {
            bail!("two mounts at `{}`; give each a place of its own", mount.guest());
        }
    }
    Ok(mounts)
}

/// Reads one `-v SRC:DST[:ro|:rw]`.
///
/// # Errors
/// Words that are no mount, saying how one is written.
pub fn parse(word: &str) -> Result<Mount> {
    let form = || {
        format!(
            "`-v {word}`: write SRC:DST or SRC:DST:ro, like ./src:/srv (a folder) or data:/var/lib/data (a volume)"
        )
    };
    let parts: Vec<&str> = word.split(':').collect();
    let (source, guest, read_only) = match parts[..] {
        [source, guest] | [source, guest, "rw"] => (source, guest, false),
        [source, guest, "ro"] => (source, guest, true),
        _ => bail!(form()),
    };
    let guest = destination(guest).with_context(form)?;
    if source.contains(['/', '.']) {
        return Ok(Mount::Folder { host: PathBuf::from(source), guest, read_only });
    }
    if !volume::valid_name(source) {
        return Err(volume::Error::BadName(source.to_owned())).with_context(form);
    }
    Ok(Mount::Volume { name: source.to_owned(), guest, read_only })
}

/// A place in the guest, in its plainest spelling.
fn destination(word: &str) -> Result<String> {
    let path = Path::new(word);
    let plain: PathBuf = path.components().collect();
    let strange = path.components().any(|c| !matches!(c, Component::RootDir | Component::Normal(_)));
    let text = plain.to_str().map(str::to_owned).unwrap_or_default();
    if !path.is_absolute() || strange || word.contains('\0') {
        bail!("`{word}` is no absolute path in the guest");
    }
    if text == "/" || SYSTEM.iter().any(|system| plain.starts_with(system)) {
        bail!("nothing can be mounted at `{word}`: the guest's system lives there");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_alone_decides_what_a_mount_is() {
        let volume = |name: &str, guest: &str, read_only| Mount::Volume {
            name: name.into(),
            guest: guest.into(),
            read_only,
        };
        let folder = |host: &str, guest: &str, read_only| Mount::Folder {
            host: host.into(),
            guest: guest.into(),
            read_only,
        };
        for (word, wanted) in [
            ("data:/var/lib/data", volume("data", "/var/lib/data", false)),
            ("pg_data-1:/d/:ro", volume("pg_data-1", "/d", true)),
            ("./src:/srv", folder("./src", "/srv", false)),
            (".:/srv:rw", folder(".", "/srv", false)),
            ("/etc/hosts:/mnt//hosts:ro", folder("/etc/hosts", "/mnt/hosts", true)),
            ("conf.toml:/etc/conf.toml", folder("conf.toml", "/etc/conf.toml", false)),
        ] {
            assert_eq!(parse(word).unwrap(), wanted, "{word}");
        }
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        for word in [
            "data",
            "data:",
            ":/x",
            "data:x",
            "data:/",
            "data:/proc/x",
            "data:/dev",
            "data:/a/../b",
            "data:/x:rx",
            "Data:/x",
            "-d:/x",
            "data:/x:ro:ro",
            "",
        ] {
            assert!(parse(word).is_err(), "{word}");
        }
        let words = ["a:/x".to_owned(), "b:/x/".to_owned()];
        assert!(parse_all(&words).is_err());
    }
}
