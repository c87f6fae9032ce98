//! The host itself: the same program in a chroot of the same root, in a mount namespace of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::{Contender, Kind};
use crate::setup::Setup;

/// Everything mounted here goes with the namespace.
const SCRIPT: &str = r#"
set -e
at=$1 image=$2 guest=$3 script=$4
mount --make-rprivate /
mkdir -p "$at"
mount -t tmpfs -o mode=0755 none "$at"
mkdir "$at/base" "$at/upper" "$at/work" "$at/root"
mount -t erofs -o ro,loop "$image" "$at/base"
mount -t overlay -o "lowerdir=$at/base,upperdir=$at/upper,workdir=$at/work" none "$at/root"
mkdir -p "$at/root/dev" "$at/root/proc" "$at/root/sys" "$at/root/run"
mount --bind /dev "$at/root/dev"
mount -t tmpfs -o mode=1777 none "$at/root/dev/shm"
mount -t proc none "$at/root/proc"
mount -t tmpfs none "$at/root/run"
cp -a "$at/base/run/." "$at/root/run"
if [ -n "$guest" ]; then
  cp "$guest" "$at/root/run/engine_guest"
  exec chroot "$at/root" /run/engine_guest serve
fi
exec chroot "$at/root" sh -c "$script"
"#;

/// Starts it.
pub fn start(setup: &Setup) -> Result<Contender> {
    if !rustix::process::geteuid().is_root() {
        bail!("a native run needs a chroot, and that needs root; leave it out with `--without native`");
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh"]);
    command.arg(setup.work.join("native")).arg(&setup.root).arg(&setup.guest).arg("");
    Contender::spawn(Kind::Native, setup, &mut command)
}

/// A shell script in a chroot of an image, with processes of its own, which end with it.
pub fn script(image: &Path, at: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c"]);
    command
        .arg(format!("ip link set lo up 2>/dev/null\n{SCRIPT}"))
        .arg("sh")
        .arg(at)
        .arg(image)
        .arg("")
        .arg(script);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(std::process::Stdio::null());
    command
}
