//! What is in the folder: a file to read, a git repository, and a package with npm's own cache beside it. Each machine
//! gets a tree of its own, for they write in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use engine::host::run;

/// The last npm that works with Debian 12's Node 18.
const NPM: &str = "npm@10";
/// Files of a directory of the repository.
const SPREAD: usize = 40;

/// Writes everything into `dir`, which is empty.
///
/// # Errors
/// The host's; no git or npm; a package that the registry does not have.
pub fn write(dir: &Path, pages: u64, files: usize, package: Option<&str>) -> Result<()> {
    let page: Vec<u8> = (0..4096u32).map(|i| (i * 7 + (i >> 8)) as u8).collect();
    fs::write(dir.join("data"), page.repeat(usize::try_from(pages)?))?;
    let Some(package) = package else { return Ok(()) };
    repository(&dir.join("repo"), files)?;
    packages(dir, package)
}

/// A repository with a commit and nothing changed since.
fn repository(dir: &Path, files: usize) -> Result<()> {
    for i in 0..files {
        let place = dir.join(format!("area-{}/part-{}", i / SPREAD / SPREAD, i / SPREAD % SPREAD));
        fs::create_dir_all(&place)?;
        let line = format!("fn work_{i}(x: u64) -> u64 {{ x.rotate_left({}) ^ {i} }}\n", i % 64);
        fs::write(place.join(format!("file-{i}.rs")), line.repeat(1 + i % 40))?;
    }
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]).args(words);
        run(command.current_dir(dir)).with_context(|| format!("git {words:?}"))
    };
    git(&["init", "-q"])?;
    git(&["add", "."])?;
    git(&["commit", "-q", "-m", "all"])
}

/// `app`, whose lock file names everything, and `cache`, which has it: an install needs no network any more. `tools` has
/// an npm for the guest's Node, which comes without one.
fn packages(dir: &Path, package: &str) -> Result<()> {
    let app = dir.join("app");
    fs::create_dir_all(&app)?;
    fs::write(app.join("package.json"), "{\"name\":\"app\",\"version\":\"1.0.0\",\"private\":true}\n")?;
    let tools = dir.join("tools");
    fs::create_dir_all(&tools)?;
    let install = |place: &Path, package: &str| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", package]);
        // With where each came from in the lock file an install asks for nothing but what the cache has.
        npm.arg("--omit-lockfile-registry-resolved=false");
        npm.arg("--cache").arg(dir.join("cache")).current_dir(place);
        // What the caller sees on its standard output is the table.
        run(npm.stdout(std::process::Stdio::null()))
            .with_context(|| format!("npm could not install {package}"))
    };
    install(&tools, NPM)?;
    install(&app, package)?;
    fs::remove_dir_all(app.join("node_modules")).context("npm installed nothing")
}
