//! The script that finishes unpacked packages inside the machine.
//!
//! What dpkg would have done while unpacking and what was not done on the host is done first:
//! the `preinst` scripts, each when what it relies on is ready (`order.rs`). Then dpkg configures
//! everything in the order that it finds right. No service is started: `policy-rc.d` says no
//! (invoke-rc.d(8), 101) until the end. Whatever would differ from one run to the next is held
//! still: hash seeds, and the day on which passwords were last changed.

use std::fmt::Write;

use super::order::{self, Step};
use super::package::Package;
use crate::tree::Time;

/// Where diverted files wait.
const ASIDE: &str = "var/lib/dpkg/aside";

/// Environment of every maintainer script.
const ENVIRONMENT: &str = "\
set -eu
umask 022
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C TZ=UTC
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DEBCONF_NOWARNINGS=yes
export PERL_HASH_SEED=0 PYTHONHASHSEED=0
policy=/usr/sbin/policy-rc.d
trap 'rm -f \"$policy\"' EXIT
printf '#!/bin/sh\\nexit 101\\n' >\"$policy\"
chmod 755 \"$policy\"
preinst() {
\tDPKG_MAINTSCRIPT_PACKAGE=$1 DPKG_MAINTSCRIPT_ARCH=$2 DPKG_MAINTSCRIPT_NAME=preinst \\
\tDPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT= \\
\t\"/var/lib/dpkg/info/$3.preinst\" install || {
\t\techo \"the preinst script of $1 failed\" >&2
\t\texit 1
\t}
}
";

/// Files that another package's `preinst` diverts: unpacked one by one, the diversion would have
/// sent them elsewhere; unpacked all at once, they wait here until the diversion is known.
#[derive(Default)]
pub(super) struct Aside {
    paths: Vec<Vec<u8>>,
}

impl Aside {
    /// Where the file that is listed as `path` waits.
    pub fn add(&mut self, path: Vec<u8>) -> String {
        self.paths.push(path);
        format!("{ASIDE}/{}", self.paths.len())
    }

    fn script(&self) -> String {
        if self.paths.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "aside() {{
\treal=$(dpkg-divert --truename \"$2\")
\tif [ \"$real\" = \"$2\" ]; then
\t\techo \"two packages have $2, and neither diverts it; one is gone\" >&2
\telse
\t\tmv -f \"/{ASIDE}/$1\" \"$real\"
\tfi
}}
"
        );
        for (i, path) in self.paths.iter().enumerate() {
            let quoted = String::from_utf8_lossy(path).replace('\'', "'\\''");
            let _ = writeln!(text, "aside {} '{quoted}'", i + 1); // a String takes everything
        }
        text + &format!("rm -rf /{ASIDE}\n")
    }
}

/// The script for packages unpacked in this order.
pub(super) fn configure_script(packages: &[Package], aside: &Aside, epoch: Time) -> String {
    let mut text = ENVIRONMENT.to_owned();
    for step in order::steps(packages) {
        match step {
            Step::Preinst(at) => {
                let package = &packages[at];
                let arch = package.control.get("Architecture").unwrap_or("all");
                let (name, info) = (&package.name, package.info_name());
                let _ = writeln!(text, "preinst {name} {arch} {info}"); // a String takes everything
            }
            Step::Configure(some) => {
                let names: Vec<String> = some.iter().map(|at| packages[*at].info_name()).collect();
                let _ = writeln!(text, "dpkg --configure {}", names.join(" "));
            }
        }
    }
    text.push_str(&aside.script());
    let day = epoch.secs.div_euclid(86_400).max(0);
    let _ = write!(
        text,
        "dpkg --configure -a
for shadow in /etc/shadow /etc/shadow-; do
\tif [ -f \"$shadow\" ]; then
\t\tsed -i -E 's/^([^:]*:[^:]*:)[0-9]+:/\\1{day}:/' \"$shadow\"
\tfi
done
"
    );
    text
}
