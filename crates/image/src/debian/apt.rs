//! The system's own apt, asked questions with a state of its own: an empty dpkg status, so that
//! the answer does not depend on what this host has installed. Lists, keys, pins, proxies and
//! mirrors are the system's; addresses that apt prints are dropped where they are read.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::{Cache, DebianError, PackageSpec, Request};
use crate::lock::PackageLock;

/// A way to call apt's programs for one architecture.
pub struct Apt {
    arch: String,
    /// Our status, cache and working files.
    dir: PathBuf,
}

impl Apt {
    /// Prepares the private state below the cache.
    ///
    /// # Errors
    /// [`DebianError::Io`] when the cache cannot be written.
    pub fn new(cache: &Cache, arch: &str) -> Result<Self, DebianError> {
        let dir = cache.apt_dir()?;
        Ok(Self { arch: arch.to_owned(), dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            format!("Dir::State::status={dir}/status"),
            format!("Dir::State::extended_states={dir}/extended_states"),
            format!("Dir::Cache::archives={dir}/archives"),
            format!("Dir::Cache::pkgcache={dir}/pkgcache-{}.bin", self.arch),
            format!("Dir::Cache::srcpkgcache={dir}/srcpkgcache-{}.bin", self.arch),
            format!("APT::Architecture={}", self.arch),
            format!("APT::Architectures={}", self.arch),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Install-Suggests=false".to_owned(),
            "Debug::NoLocking=true".to_owned(),
            "Acquire::ForceHash=SHA256".to_owned(),
            "APT::Color=false".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn run(&self, mut command: Command) -> Result<Output, DebianError> {
        command.output().map_err(|source| DebianError::NoApt {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })
    }

    pub(super) fn stdout(&self, program: &str, arguments: &[&str]) -> Result<String, DebianError> {
        let mut command = self.command(program);
        command.args(arguments);
        let output = self.run(command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The packages that every Debian has: those marked essential, without apt itself, which a
    /// built root does not need. The one that says that /usr is merged stands for the one that
    /// would merge it.
    fn base(&self) -> Result<Vec<String>, DebianError> {
        let pattern = "?or(?essential,?exact-name(usr-is-merged))";
        let shown = self.stdout("apt-cache", &["show", pattern])?;
        let mut names: Vec<String> = package_names(&shown).filter(|name| name != "apt").collect();
        names.sort_unstable();
        names.dedup();
        match names.is_empty() {
            true => Err(DebianError::NoLists),
            false => Ok(names),
        }
    }

    /// Downloads exactly these packages into `into`, under apt's names for them.
    pub(super) fn download(&self, packages: &[&PackageLock], into: &Path) -> Result<(), DebianError> {
        for some in packages.chunks(200) {
            let mut command = self.command("apt-get");
            command.args(["-q", "download"]).current_dir(into);
            command.args(some.iter().map(|p| format!("{}={}", p.name, p.version)));
            let output = self.run(command)?;
            if !output.status.success() {
                return Err(self.download_error(some, &output));
            }
        }
        Ok(())
    }

    fn download_error(&self, packages: &[&PackageLock], output: &Output) -> DebianError {
        let said = complaints(output);
        let gone: Vec<String> = packages
            .iter()
            .filter(|p| {
                said.contains(&format!("Version '{}' for '{}' was", p.version, p.name))
                    || said.contains(&format!("Unable to locate package {}", p.name))
            })
            .map(|p| format!("{} {}", p.name, p.version))
            .collect();
        match gone.is_empty() {
            true => DebianError::Apt { doing: "downloading packages", said },
            false => DebianError::Gone { packages: gone.join(", ") },
        }
    }

    /// Finds out which of apt's complaints it was.
    fn resolve_error(&self, request: &Request, output: &Output) -> DebianError {
        let said = complaints(output);
        if !self.has_lists() {
            return DebianError::NoLists;
        }
        for PackageSpec { name, version } in &request.packages {
            let unknown = [
                format!("Unable to locate package {name}\n"),
                format!("Package '{name}' has no installation candidate"),
            ];
            if unknown.iter().any(|text| format!("{said}\n").contains(text)) {
                return DebianError::NoPackage { name: name.clone(), hint: self.hint(name) };
            }
            if let Some(version) = version
                && said.contains(&format!("Version '{version}' for '{name}' was not found"))
            {
                return DebianError::NoVersion {
                    name: name.clone(),
                    version: version.clone(),
                    offered: self.offered(name),
                };
            }
        }
        let unmet = String::from_utf8_lossy(&output.stdout)
            .split_once("unmet dependencies:\n")
            .map(|(_, lines)| lines.trim_end().to_owned());
        match unmet {
            Some(lines) => DebianError::Unsatisfiable { said: lines },
            None => DebianError::Apt { doing: "asking apt which packages are needed", said },
        }
    }

    pub(super) fn has_lists(&self) -> bool {
        let arguments = ["indextargets", "--format", "$(FILENAME)", "Created-By: Packages"];
        self.stdout("apt-get", &arguments).is_ok_and(|files| !files.trim().is_empty())
    }

    fn hint(&self, name: &str) -> String {
        let start: String = name.chars().take(2).collect();
        let names = self.stdout("apt-cache", &["pkgnames", &start]).unwrap_or_default();
        match spec::nearest(name, names.lines()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => "; `apt-cache search` finds names".to_owned(),
        }
    }

    fn offered(&self, name: &str) -> String {
        let shown = self.stdout("apt-cache", &["show", name]).unwrap_or_default();
        let mut versions: Vec<&str> =
            shown.lines().filter_map(|line| line.strip_prefix("Version: ")).collect();
        versions.dedup();
        match versions.is_empty() {
            true => "none".to_owned(),
            false => versions.join(", "),
        }
    }
}

/// Everything that `request` needs from nothing, in the order in which it is to be unpacked.
///
/// # Errors
/// [`DebianError`]: no apt, no lists, no such package or version, conflicts.
pub fn resolve(request: &Request, cache: &Cache) -> Result<Vec<PackageLock>, DebianError> {
    let apt = Apt::new(cache, &request.arch)?;
    let base = apt.base().map_err(|e| match e {
        DebianError::NoLists if apt.has_lists() => DebianError::Apt {
            doing: "looking for the essential packages",
            said: "none are marked as essential".to_owned(),
        },
        other => other,
    })?;
    let mut command = apt.command("apt-get");
    command.args(["-q", "-y", "--print-uris", "install", "--"]);
    command.args(base);
    command.args(request.packages.iter().map(PackageSpec::argument));
    let output = apt.run(command)?;
    if !output.status.success() {
        return Err(apt.resolve_error(request, &output));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with('\''))
        .map(parse_uri_line)
        .collect()
}

/// `'ADDRESS' NAME_VERSION_ARCH.deb SIZE SHA256:HEX`, of which the address is not kept.
fn parse_uri_line(line: &str) -> Result<PackageLock, DebianError> {
    let strange = || DebianError::Apt {
        doing: "understanding apt's list of packages",
        said: line.rsplit('\'').next().unwrap_or_default().to_owned(),
    };
    let (_, rest) = line.rsplit_once("' ").ok_or_else(strange)?;
    let mut fields = rest.split_whitespace();
    let file = fields.next().ok_or_else(strange)?;
    let size = fields.next().and_then(|size| size.parse().ok()).ok_or_else(strange)?;
    let mut parts = file.strip_suffix(".deb").ok_or_else(strange)?.splitn(3, '_');
    let (Some(name), Some(version), Some(arch)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(strange());
    };
    let sha256 = fields
        .next()
        .and_then(|hash| hash.strip_prefix("SHA256:"))
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .ok_or_else(|| DebianError::NoHash { package: name.to_owned() })?;
    Ok(PackageLock {
        name: name.to_owned(),
        version: unquote(version).ok_or_else(strange)?,
        arch: arch.to_owned(),
        sha256: sha256.to_ascii_lowercase(),
        size,
    })
}

/// apt writes `:` and `_` of a version as %3a and %5f in file names.
fn unquote(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        let code = u8::from_str_radix(after.get(..2)?, 16).ok()?;
        out.push_str(before);
        out.push(char::from(code));
        rest = &after[2..];
    }
    Some(out + rest)
}

fn package_names(stanzas: &str) -> impl Iterator<Item = String> {
    stanzas.lines().filter_map(|line| line.strip_prefix("Package: ")).map(str::to_owned)
}

/// apt's error lines without the addresses in them.
fn complaints(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .filter(|line| line.starts_with("E:"))
        .map(|line| {
            let words = line.split(' ').map(|word| match word.contains("://") {
                true => "(address)",
                false => word,
            });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_print_uris_loses_its_address() {
        let hash = "ab".repeat(32);
        let line =
            format!("'http://x/pool/g%2b%2b_1%3a2~rc_amd64.deb' g++_1%3a2~rc_amd64.deb 77 SHA256:{hash}");
        let lock = parse_uri_line(&line).expect("understood");
        assert_eq!(lock.name, "g++");
        assert_eq!(lock.version, "1:2~rc");
        assert_eq!((lock.arch.as_str(), lock.size), ("amd64", 77));
        assert_eq!(lock.sha256, hash);
    }

    #[test]
    fn a_line_without_sha256_is_refused() {
        let line = "'http://x/a_1_all.deb' aa_1_all.deb 77 MD5Sum:00";
        assert!(matches!(parse_uri_line(line), Err(DebianError::NoHash { .. })));
    }
}
