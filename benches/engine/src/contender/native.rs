//! The host itself: the same program in a chroot of the same root, in a mount namespace of its own.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Contender, Kind};
use crate::setup::Setup;

/// Everything mounted here goes with the namespace.
const SCRIPT: &str = r#"
set -e
at=$1 image=$2 guest=$3
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
cp "$guest" "$at/root/run/engine_guest"
exec chroot "$at/root" /run/engine_guest serve
"#;

/// Starts it.
pub fn start(setup: &Setup) -> Result<Contender> {
    if !rustix::process::geteuid().is_root() {
        bail!("a native run needs a chroot, and that needs root; leave it out with `--without native`");
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT, "sh"]);
    command.arg(setup.work.join("native")).arg(&setup.root).arg(&setup.guest);
    Contender::spawn(Kind::Native, setup, &mut command)
}
