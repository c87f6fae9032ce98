//! `cargo xtask dist --check`: the archive on a clean Debian 12 with nothing added, as root and as an
//! ordinary user.
//!
//! debootstrap makes the smallest Debian (kept for later checks); in it there is a /proc and else
//! nothing of the host: no /dev/kvm, no compiler, no Python.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::paths::Paths;
use crate::run;

/// What a newcomer does first. `$0` is the program.
const FIRST_MINUTE: &str = r#"set -e
cd "$(mktemp -d)"
test "$("$0" run -- echo works)" = works
"$0" doctor | grep -q '^engine   soft'
mkdir root root/etc && echo kept >root/etc/state && cp /bin/sleep root/
printf 'name = "x"\nmemory = "128MiB"\n[root]\nfiles = { "root" = "/srv" }\n' >Smolfile
"$0" check
"$0" build -q
test "$("$0" run ./x.smolmachine -- cat /srv/etc/state)" = kept
tar -cf root.tar -C root . && printf 'name = "y"\n[root]\ntar = "root.tar"\n' >Smolfile && "$0" check
"$0" doctor x.smolmachine | grep -q '^runs'
"$0" verify x.smolmachine
"$0" run -d --name m ./x.smolmachine && "$0" freeze -q m && "$0" start m
test "$("$0" exec m cat /srv/etc/state)" = kept
"$0" rm -f m
test -z "$("$0" ps -a -q)"
"#;

/// A mounted /proc, unmounted on drop.
struct Proc<'a>(&'a Path);

impl Drop for Proc<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Unpacks `archive` (its top directory is `stem`) in a clean Debian and uses it there.
pub fn check(paths: &Paths, archive: &Path, stem: &str) -> Result<()> {
    let root = clean_debian(paths)?;
    let proc = root.join("proc");
    run::status(Command::new("mount").args(["-t", "proc", "proc"]).arg(&proc))?;
    let _proc = Proc(&proc);
    run::status(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(root.join("opt")))?;
    let program = format!("/opt/{stem}/smolvm");
    for (who, user) in [("root", "0:0"), ("an ordinary user", "1000:1000")] {
        let home = format!("/tmp/home-{}", user.split(':').next().unwrap_or_default());
        let inside = root.join(home.trim_start_matches('/'));
        run::status(Command::new("rm").arg("-rf").arg(&inside))?;
        fs::create_dir(&inside).with_context(|| format!("cannot make {}", inside.display()))?;
        run::status(Command::new("chown").arg(user).arg(&inside))?;
        // By its whole path: the environment is the clean Debian's.
        let chroot = run::find_program("chroot").context("there is no chroot(8) here")?;
        let mut chroot = Command::new(chroot);
        chroot.arg(format!("--userspec={user}")).arg(&root);
        chroot.args(["/bin/sh", "-c", FIRST_MINUTE, &program]);
        chroot.env_clear().env("HOME", &home).env("PATH", "/usr/bin:/bin").env("TMPDIR", &home);
        run::status(&mut chroot).with_context(|| format!("the first minute as {who}"))?;
        eprintln!("dist: works on a clean Debian as {who}");
    }
    Ok(())
}

fn clean_debian(paths: &Paths) -> Result<std::path::PathBuf> {
    let root = paths.target.join("dist/clean-debian");
    // The last thing that debootstrap removes.
    if root.join("etc/os-release").exists() && !root.join("debootstrap").exists() {
        return Ok(root);
    }
    let debootstrap = run::find_program("debootstrap");
    ensure!(debootstrap.is_some(), "dist --check needs debootstrap: apt-get install debootstrap");
    run::status(Command::new("rm").arg("-rf").arg(&root))?;
    let mut make = Command::new("debootstrap");
    make.args(["--variant=minbase", "bookworm"]).arg(&root);
    run::logged(&mut make, &paths.target.join("dist/debootstrap.log"))
        .context("making a clean Debian (this needs root and a network)")?;
    Ok(root)
}
