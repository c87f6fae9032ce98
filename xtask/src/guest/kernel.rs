//! `vmlinux`: Linux from Debian's source package, with `guest/kernel/config`.
//!
//! Reproducible from the same inputs: the time, user and host that the kernel would record are fixed,
//! and the build does not see where it runs. The inputs (recipe, configuration, source hash, compiler
//! and linker) are the cache key. The guest is entered at the ELF's own 64-bit entry point, so the
//! decompressor of a bzImage is neither built nor run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};

use super::build_info::BuildInfo;
use super::debian::Candidate;
use super::tools::Tools;
use super::{Options, cache, config, elf, say};
use crate::paths::Paths;
use crate::run;

const PACKAGE: &str = "linux-source-6.12";

/// Raise it when this file changes what is built.
const RECIPE: &str = "5";

/// The largest that the loadable image may be, in bytes.
const LIMIT: usize = 24 << 20;

/// Lines that a whole build prints, about: for the progress only.
const STEPS: usize = 1250;

/// Source packages that this recipe was tried with: (version, SHA-256 of the package).
const TRIED: &[(&str, &str)] =
    &[("6.12.117-1~deb12u1", "e849faf31ca3555757f3a8877cb01af92122f744f75d1f3102734651c4e14703")];

/// A change to the source.
struct Mend {
    file: &'static str,
    /// What stands there, once.
    wrong: &'static str,
    right: &'static str,
    /// What to look for when it does not stand there any more.
    look: &'static str,
}

/// The changes to the source. ACPICA lists the PCI configuration space among its default address spaces also where it
/// is built without PCI, and then gives up on all of ACPI; the space before it, repeated, is passed over as installed
/// already. The deadline server of ordinary tasks (there for when real-time tasks starve them) wakes an idle
/// processor once more a second after each bit of work, and can be switched off in debugfs only, which we lack.
/// Source ports and first sequence numbers of TCP come out of a secret that is drawn once after boot, so that copies of
/// a machine would use the same ones: it is drawn anew after a fork, which the agent tells of by reseeding the generator
/// (the news of VMGenID may come after the machine's processes go on).
const MENDS: &[Mend] = &[
    Mend {
        file: "drivers/acpi/acpica/evhandler.c",
        wrong: "\tACPI_ADR_SPACE_PCI_CONFIG,\n\tACPI_ADR_SPACE_DATA_TABLE",
        right: "\tACPI_ADR_SPACE_SYSTEM_IO,\n\tACPI_ADR_SPACE_DATA_TABLE",
        look: "whether ACPI still starts without PCI",
    },
    Mend {
        file: "kernel/sched/deadline.c",
        wrong: "u64 runtime =  50 * NSEC_PER_MSEC;",
        right: "u64 runtime =  0;",
        look: "how the fair server is switched off",
    },
    Mend {
        file: "drivers/char/random.c",
        wrong: "\t\tcrng_reseed(NULL);\n\t\treturn 0;\n\tdefault:",
        right: "\t\tcrng_reseed(NULL);\n\t\tblocking_notifier_call_chain(&vmfork_chain, 0, NULL);\n\t\treturn 0;\n\tdefault:",
        look: "how RNDRESEEDCRNG tells what else was drawn from the generator",
    },
    Mend {
        file: "net/core/secure_seq.c",
        wrong: "\tnet_get_random_once(&net_secret, sizeof(net_secret));\n}\n",
        right: RENEW_NET_SECRET,
        look: "where the secret of TCP's ports and sequence numbers is",
    },
];

/// Draws the secret of ports and sequence numbers anew. (Who reads it meanwhile hashes with half of each: as good.)
const RENEW_NET_SECRET: &str = "\tnet_get_random_once(&net_secret, sizeof(net_secret));
}

static int net_secret_renew(struct notifier_block *nb, unsigned long action, void *data)
{
	get_random_bytes(&net_secret, sizeof(net_secret));
	return NOTIFY_DONE;
}

static struct notifier_block net_secret_vmfork = { .notifier_call = net_secret_renew };

static int __init net_secret_follow_forks(void)
{
	return register_random_vmfork_notifier(&net_secret_vmfork);
}
late_initcall(net_secret_follow_forks);
";

/// Parts of the source tree that an x86 guest without such hardware never compiles. Their Kconfig
/// files and makefiles stay, since both are read. A pattern's `*` crosses slashes.
const NOT_UNPACKED: &[&str] = &[
    "*/Documentation/*/*",
    "*/tools/testing/*",
    "*/drivers/gpu/*.[ch]",
    "*/drivers/net/ethernet/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/scsi/*.[ch]",
    "*/sound/*.[ch]",
    "*/arch/*.dts",
    "*/arch/*.dtsi",
];

/// Builds the kernel unless one from the same inputs is cached, and publishes `vmlinux`.
pub fn build(paths: &Paths, options: &Options, info: &mut BuildInfo) -> Result<()> {
    let source = Candidate::find(PACKAGE)?;
    source.warn_if_new(TRIED);
    let tools = Tools::ready(&paths.cache)?;
    let fragment_path = paths.in_root("guest/kernel/config");
    let fragment = fs::read_to_string(&fragment_path)
        .with_context(|| format!("cannot read {}", fragment_path.display()))?;
    let gcc = first_line(Command::new("gcc").arg("--version"))?;
    let ld = first_line(Command::new("ld").arg("--version"))?;
    let key = cache::Inputs::default()
        .add("recipe", RECIPE)
        .add("fragment", config::meaning(&fragment))
        .add("mends", MENDS.iter().map(|mend| mend.right).collect::<Vec<_>>().join("\0"))
        .add("source", &source.sha256)
        .add("gcc", &gcc)
        .add("ld", &ld)
        .key();
    if options.rebuild {
        cache::remove_dir(&paths.cache.join(format!("kernel-{key}")))?;
    }
    let dir = cache::get_or_make(&paths.cache, "kernel", &key, |dir| {
        // One work directory for each source, so that a change of the configuration compiles only what it
        // touches, if the last build's was kept.
        let work = paths.cache.join(format!("kernel-work-{}", source.key()));
        let _lock = cache::lock(&paths.cache.join("kernel-work.lock"))?;
        make(&source, paths, &tools, options, &fragment, &work, dir)?;
        if options.keep_build { Ok(()) } else { cache::remove_dir(&work) }
    })?;

    let vmlinux = elf::loadable(&cache::read(&dir.join("vmlinux.symbols"))?)
        .context("the kernel that was built is not what a guest can be entered at")?;
    if vmlinux.len() > LIMIT {
        bail!(
            "the kernel image has {} bytes (limit {LIMIT}): something big was configured in",
            vmlinux.len()
        );
    }
    say(&format!("kernel: {} KiB to load", vmlinux.len() >> 10));
    cache::publish(&vmlinux, &paths.guest.join("vmlinux"))?;
    info.set_part("vmlinux", &vmlinux);
    info.set("kernel_release", String::from_utf8_lossy(&cache::read(&dir.join("release"))?));
    info.set("kernel_source", format!("{PACKAGE} {}", source.version));
    info.set("kernel_source_sha256", &source.sha256);
    info.set("kernel_config_blake3", blake3::hash(fragment.as_bytes()).to_hex().as_str());
    info.set("kernel_recipe", RECIPE);
    info.set("gcc", gcc);
    info.set("ld", ld);
    Ok(())
}

/// Unpacks, configures, compiles, checks; leaves the results in `dir`.
fn make(
    source: &Candidate,
    paths: &Paths,
    tools: &Tools,
    options: &Options,
    fragment: &str,
    work: &Path,
    dir: &Path,
) -> Result<()> {
    let tree = unpack(source, paths, work)?;
    mend(&tree)?;
    let build = work.join("build");
    if options.rebuild {
        cache::remove_dir(&build)?;
    }
    // An interrupted or kept build is gone on with.
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let make = |targets: &[&str]| {
        let mut command = Command::new("make");
        tools.apply(&mut command);
        let out = format!("O={}", build.display());
        command.arg("-C").arg(&tree).arg(out).args(targets);
        // What the kernel would record about the build, fixed; and nothing from our own environment.
        command.env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970");
        command.env("KBUILD_BUILD_USER", "smolvm").env("KBUILD_BUILD_HOST", "smolvm");
        command.env("KBUILD_BUILD_VERSION", "1");
        command.env("LC_ALL", "C").env_remove("MAKEFLAGS").env_remove("ARCH").env_remove("CROSS_COMPILE");
        command
    };
    say("configuring the kernel");
    run::logged(&mut make(&["tinyconfig"]), &work.join("configure.log"))?;
    let dot_config = build.join(".config");
    let tiny = fs::read_to_string(&dot_config).context("`make tinyconfig` left no .config")?;
    fs::write(&dot_config, format!("{tiny}\n{fragment}")).context("cannot write .config")?;
    run::logged(&mut make(&["olddefconfig"]), &work.join("configure.log"))?;
    let result = fs::read_to_string(&dot_config).context("`make olddefconfig` left no .config")?;
    config::check(fragment, &result)?;

    let jobs = options.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let log = work.join("make.log");
    say(&format!("compiling the kernel with {jobs} jobs: minutes (log: {})", log.display()));
    let progress = |lines| say(&format!("{lines} of about {STEPS} steps"));
    run::watched(&mut make(&[&format!("-j{jobs}"), "vmlinux"]), &log, progress)?;
    collect(&build, &dot_config, dir)?;
    let release = run::output(make(&["kernelrelease"]).arg("-s"))?;
    fs::write(dir.join("release"), release.trim()).context("cannot write the kernel's release")
}

/// Unpacks the source once for each work directory.
fn unpack(source: &Candidate, paths: &Paths, work: &Path) -> Result<PathBuf> {
    let tree = work.join("source");
    if tree.join("Makefile").is_file() {
        return Ok(tree);
    }
    let package = work.join("package");
    cache::remove_dir(&package)?;
    cache::remove_dir(&tree)?;
    let partial = work.join("source.partial");
    cache::remove_dir(&partial)?;
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    say(&format!("unpacking {} {}", source.name, source.version));
    source.unpack(&paths.cache, &package)?;
    let archive = package.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(&archive).arg("-C").arg(&partial).arg("--strip-components=1");
    tar.args(NOT_UNPACKED.iter().map(|pattern| format!("--exclude={pattern}")));
    run::status(&mut tar)?;
    fs::rename(&partial, &tree).with_context(|| format!("cannot rename {}", partial.display()))?;
    cache::remove_dir(&package)?;
    Ok(tree)
}

/// Makes the changes; fails when the source is not as it was when they were needed.
fn mend(tree: &Path) -> Result<()> {
    for Mend { file, wrong, right, look } in MENDS {
        let path = tree.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if text.contains(right) {
            continue;
        }
        if text.matches(wrong).count() != 1 {
            bail!("{} has changed: look {look}, and mend MENDS", path.display());
        }
        fs::write(&path, text.replace(wrong, right))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Takes what is worth keeping: the image, its symbols, its configuration.
fn collect(build: &Path, dot_config: &Path, dir: &Path) -> Result<()> {
    let kept = [
        ("vmlinux.symbols", cache::read(&build.join("vmlinux"))?),
        ("System.map", cache::read(&build.join("System.map"))?),
        ("config", cache::read(dot_config)?),
    ];
    kept.iter().try_for_each(|(name, bytes)| {
        fs::write(dir.join(name), bytes).with_context(|| format!("cannot write {name} in {}", dir.display()))
    })
}

fn first_line(command: &mut Command) -> Result<String> {
    let text = run::output(command.env("LC_ALL", "C"))?;
    Ok(text.lines().next().unwrap_or_default().to_string())
}
