//! `init` and `check`.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, bail};

use crate::args::{Check, Global, Init};
use crate::ui;

/// A first definition: what most people change is there, the rest is named.
const FIRST: &str = r#"# A machine as code. `smolvm check` validates it, `smolvm build` makes the machine file.
name = "NAME"
cpus = 1
memory = "512MiB"

[root]
# Exactly one source: packages (Debian), dir, tar, or none for the built-in busybox machine.
packages = ["python3-minimal"]
# files = { "app" = "/srv/app" }

# [build]
# steps = ["useradd app"]

[run]
command = ["python3", "-m", "http.server", "8000", "--bind", "127.0.0.1"]

[ready]                          # one of: port, http, socket, log, exec, after
port = 8000
timeout = "60s"
"#;

pub fn init(init: &Init) -> Result<u8> {
    fs::create_dir_all(&init.dir).with_context(|| format!("making {}", init.dir.display()))?;
    let path = init.dir.join("Smolfile");
    let dir = fs::canonicalize(&init.dir).with_context(|| format!("finding {}", init.dir.display()))?;
    let name = dir.file_name().and_then(|n| n.to_str()).filter(|n| spec::valid_name(n)).unwrap_or("machine");
    let file = fs::File::options().write(true).create_new(true).open(&path);
    let mut file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} is there already; `smolvm check {0}` validates it", path.display())
        }
        Err(e) => return Err(e).with_context(|| format!("making {}", path.display())),
    };
    file.write_all(FIRST.replace("NAME", name).as_bytes())?;
    println!("{}", path.display());
    eprintln!("smolvm: next: smolvm build, then smolvm run {name}.smolmachine");
    Ok(0)
}

pub fn check(check: &Check, global: &Global) -> Result<u8> {
    if check.schema {
        println!("{}", spec::json_schema());
        return Ok(0);
    }
    let path = &check.file;
    let text = fs::read_to_string(path)
        .with_context(|| format!("reading {}; `smolvm init` writes a first one", path.display()))?;
    let file = spec::parse(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let spec = file.resolve("machine").map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let base = path.parent().unwrap_or(std::path::Path::new(""));
    let sources = file.root.dir.iter().chain(&file.root.tar).chain(file.root.files.keys());
    for source in sources {
        let host = base.join(source);
        fs::metadata(&host)
            .with_context(|| format!("{}: [root] names {}", path.display(), host.display()))?;
    }
    if global.json {
        ui::json(&spec)?;
    } else if !global.quiet {
        println!("{}: ok", path.display());
    }
    Ok(0)
}
