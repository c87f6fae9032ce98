//! Limits of this process as a whole, by a control group of its own (cgroups(7)).
//!
//! Problem: where a process may make a group differs from host to host: version 2 (Linux,
//! Documentation/admin-guide/cgroup-v2.rst) gives controllers to children only where the parent has none of the
//! processes, version 1 has a tree for each controller, and both may be mounted. Strategy: for each controller that is
//! needed the tree that has it is looked for; in it the nearest place above this process where a group with these
//! controllers can be made is taken. Invariants: a limit that was asked for holds or [`enter`] fails; groups of ours
//! begin with [`PREFIX`] and are removed when their process leaves, or by the next one that comes by ([`sweep`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How the names of our groups begin.
const PREFIX: &str = "smolvm.";
/// Of [`Limits::cpu_milli`]: microseconds in which the share is given out; the kernel's own default.
const PERIOD_US: u64 = 100_000;
/// Tries of making a group that a sweep of another process may take away before somebody is in it.
const TRIES: u32 = 4;

/// What a process may use; nothing: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, page cache and the kernel's own for it included.
    pub memory: Option<u64>,
    /// CPU time in thousandths of one CPU.
    pub cpu_milli: Option<u32>,
}

/// What the group of a process is limited to and used of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    pub limits: Limits,
    /// Bytes that count against the limit now.
    pub memory: u64,
    /// Milliseconds that its threads were kept waiting for their next share of CPU time, added up.
    pub throttled_ms: u64,
}

/// Membership of this process; it leaves when this is dropped, and the group goes.
#[derive(Debug)]
pub struct Group(Vec<Place>);

#[derive(Debug)]
struct Place {
    dir: PathBuf,
    /// Where the process was.
    before: PathBuf,
}

impl Drop for Group {
    fn drop(&mut self) {
        for Place { dir, before } in &self.0 {
            // What cannot be removed now is found by the next sweep.
            let _ = join(before).and_then(|()| fs::remove_dir(dir));
        }
    }
}

/// A controller's file names in both versions.
#[derive(Debug)]
struct Controller {
    name: &'static str,
    /// (file, value) in version 2, and in version 1.
    v2: fn(&Limits) -> Vec<(&'static str, String)>,
    v1: fn(&Limits) -> Vec<(&'static str, String)>,
}

const MEMORY: Controller = Controller {
    name: "memory",
    v2: |limits| limits.memory.map(|bytes| ("memory.max", bytes.to_string())).into_iter().collect(),
    v1: |limits| {
        limits.memory.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())).into_iter().collect()
    },
};
const CPU: Controller = Controller {
    name: "cpu",
    v2: |limits| {
        let max = limits.cpu_milli.map(|milli| format!("{} {PERIOD_US}", quota(milli)));
        max.map(|max| ("cpu.max", max)).into_iter().collect()
    },
    v1: |limits| {
        let quota = limits.cpu_milli.map(|milli| ("cpu.cfs_quota_us", quota(milli).to_string()));
        let period = quota.is_some().then(|| ("cpu.cfs_period_us", PERIOD_US.to_string()));
        period.into_iter().chain(quota).collect()
    },
};

/// Microseconds in each period; the kernel takes no fewer than 1000.
fn quota(milli: u32) -> u64 {
    (u64::from(milli) * PERIOD_US / 1000).max(1000)
}

/// A mounted tree of groups, and where this process is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    /// Version 1's controllers; none for version 2.
    v1: Option<Vec<String>>,
    mount: PathBuf,
    own: PathBuf,
}

/// The trees that are mounted where this process sees itself in them. `mountinfo`: proc(5); `cgroup`: cgroups(7).
fn trees(mountinfo: &str, cgroup: &str) -> Vec<Tree> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        let (kind, options) = (back.next().unwrap_or_default(), back.nth(1).unwrap_or_default());
        let mut front = front.split(' ').skip(3);
        let (Some(root), Some(mount)) = (front.next(), front.next()) else { continue };
        let v1 = match kind {
            "cgroup2" => None,
            "cgroup" => Some(options.split(',').map(str::to_owned).collect::<Vec<_>>()),
            _ => continue,
        };
        let own = cgroup.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let ours = match &v1 {
                None => controllers.is_empty(),
                Some(options) => {
                    !controllers.is_empty()
                        && controllers.split(',').all(|name| options.iter().any(|option| option == name))
                }
            };
            ours.then_some(path)
        });
        // One that is not below the mount's root (a container's, seen from inside) is out of reach.
        let below = own.and_then(|own| Path::new(own).strip_prefix(root).ok());
        let plain =
            |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if let Some(below) = below.filter(|below| plain(below)) {
            found.push(Tree { v1, mount: mount.into(), own: Path::new(mount).join(below) });
        }
    }
    found
}

fn own_trees() -> io::Result<Vec<Tree>> {
    Ok(trees(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?))
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

impl Tree {
    fn has(&self, controller: &str) -> bool {
        let is = |name: &String| name == controller;
        match &self.v1 {
            Some(controllers) => controllers.iter().any(is),
            None => words(&self.mount.join("cgroup.controllers")).iter().any(is),
        }
    }

    /// From where this process is up to the mount, without groups of our own.
    fn places(&self) -> impl Iterator<Item = &Path> {
        let below = |dir: &&Path| dir.starts_with(&self.mount);
        self.own.ancestors().take_while(below).filter(|dir| !is_ours(dir))
    }

    /// Makes a group that `controllers` can limit; errors say what stood in the way at each place.
    fn make(&self, name: &str, controllers: &[&Controller]) -> io::Result<PathBuf> {
        let mut refusals = Vec::new();
        for place in self.places() {
            let made = match self.v1 {
                Some(_) => make_dir(&place.join(name)),
                None => give_to_children(place, controllers).and_then(|()| make_dir(&place.join(name))),
            };
            match made {
                Ok(()) => return Ok(place.join(name)),
                Err(e) => refusals.push(format!("{}: {e}", place.display())),
            }
        }
        Err(io::Error::other(refusals.join("; ")))
    }
}

fn is_ours(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// One that is there already is this process's, which has its number in the name.
fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Version 2: children have the controllers that their parent hands on.
fn give_to_children(place: &Path, controllers: &[&Controller]) -> io::Result<()> {
    let control = place.join("cgroup.subtree_control");
    let enabled = words(&control);
    let missing = controllers.iter().filter(|c| !enabled.iter().any(|name| name == c.name));
    let wanted: Vec<String> = missing.map(|c| format!("+{}", c.name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    write(&control, &wanted.join(" "))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let told =
        |e: io::Error| io::Error::new(e.kind(), format!("writing `{text}` to {}: {e}", path.display()));
    fs::write(path, text).map_err(told)
}

fn join(dir: &Path) -> io::Result<()> {
    write(&dir.join("cgroup.procs"), &std::process::id().to_string())
}

/// The trees that are needed for `limits`, each with its controllers.
fn needed(trees: &[Tree], limits: &Limits) -> io::Result<Vec<(Tree, Vec<&'static Controller>)>> {
    let wanted = [(&MEMORY, limits.memory.is_some()), (&CPU, limits.cpu_milli.is_some())];
    let mut found: Vec<(Tree, Vec<&Controller>)> = Vec::new();
    for (controller, _) in wanted.into_iter().filter(|(_, wanted)| *wanted) {
        // Where both versions are mounted a controller is in one of them.
        let tree = trees.iter().find(|tree| tree.has(controller.name)).ok_or_else(|| {
            io::Error::other(format!("no control group here has the controller `{}`", controller.name))
        })?;
        match found.iter_mut().find(|(other, _)| other == tree) {
            Some((_, controllers)) => controllers.push(controller),
            None => found.push((tree.clone(), vec![controller])),
        }
    }
    Ok(found)
}

/// Puts this process, with all its threads, into a group of its own. `name`: a word to know it by.
///
/// # Errors
/// Why this host, or this user, has no such group; nothing is limited then.
pub fn enter(name: &str, limits: Limits) -> io::Result<Group> {
    let name = format!("{PREFIX}{name}.{}", std::process::id());
    let mut group = Group(Vec::new());
    for (tree, controllers) in needed(&own_trees()?, &limits)? {
        let mut tries = 0;
        let place = loop {
            tries += 1;
            match place(&tree, &name, &controllers, &limits) {
                // Swept away by another process before anybody was in it.
                Err(e) if tries < TRIES && e.kind() == io::ErrorKind::NotFound => {}
                made => break made?,
            }
        };
        group.0.push(place);
    }
    sweep();
    Ok(group)
}

fn place(tree: &Tree, name: &str, controllers: &[&Controller], limits: &Limits) -> io::Result<Place> {
    let dir = tree.make(name, controllers)?;
    let values = controllers.iter().flat_map(|controller| match tree.v1 {
        Some(_) => (controller.v1)(limits),
        None => (controller.v2)(limits),
    });
    let filled = values.into_iter().try_for_each(|(file, value)| write(&dir.join(file), &value));
    if let Err(e) = filled.and_then(|()| join(&dir)) {
        let _ = fs::remove_dir(&dir);
        return Err(e);
    }
    Ok(Place { dir, before: tree.own.clone() })
}

/// Removes groups of ours in which nobody is any more: of processes that were killed.
pub fn sweep() {
    for tree in own_trees().unwrap_or_default() {
        for place in tree.places() {
            let dirs = fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
            // The kernel refuses to remove one with processes.
            dirs.filter(|dir| is_ours(dir)).for_each(|dir| drop(fs::remove_dir(dir)));
        }
    }
}

/// Whether machines can be limited here: which version of control groups has memory and CPU.
///
/// # Errors
/// Why not.
pub fn can_limit() -> io::Result<&'static str> {
    let every = Limits { memory: Some(1 << 30), cpu_milli: Some(1000) };
    let mut version = "cgroup v2";
    for (tree, controllers) in needed(&own_trees()?, &every)? {
        let dir = tree.make(&format!("{PREFIX}probe.{}", std::process::id()), &controllers)?;
        let _ = fs::remove_dir(dir);
        if tree.v1.is_some() {
            version = "cgroup v1";
        }
    }
    Ok(version)
}

/// What the group of this process uses; nothing when it is in none of ours.
pub fn group_usage() -> Option<GroupUsage> {
    let trees: Vec<Tree> = own_trees().ok()?.into_iter().filter(|tree| is_ours(&tree.own)).collect();
    if trees.is_empty() {
        return None;
    }
    let text = |file: &str| trees.iter().find_map(|tree| fs::read_to_string(tree.own.join(file)).ok());
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let stat = |field: &str| {
        let stat = text("cpu.stat")?;
        stat.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(' ')?.parse::<u64>().ok())
    };
    let memory_tree =
        |tree: &Tree| tree.own.join("memory.max").exists() || tree.own.join("memory.limit_in_bytes").exists();
    let limited = trees.iter().any(memory_tree);
    let memory = number("memory.max").or_else(|| number("memory.limit_in_bytes")).filter(|_| limited);
    let milli = |quota: u64, period: u64| u32::try_from(quota.saturating_mul(1000) / period.max(1)).ok();
    let cpu = match text("cpu.max") {
        Some(max) => max
            .split_once(' ')
            .and_then(|(quota, period)| milli(quota.parse().ok()?, period.trim().parse().ok()?)),
        None => number("cpu.cfs_quota_us").and_then(|quota| milli(quota, number("cpu.cfs_period_us")?)),
    };
    Some(GroupUsage {
        limits: Limits { memory, cpu_milli: cpu },
        memory: number("memory.current").or_else(|| number("memory.usage_in_bytes")).unwrap_or(0),
        // Microseconds in version 2, nanoseconds in version 1.
        throttled_ms: stat("throttled_usec")
            .map_or_else(|| stat("throttled_time").unwrap_or(0) / 1_000_000, |us| us / 1000),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 /docker/abc /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn trees_are_found_with_this_process_in_them() {
        let cgroup = "4:memory:/a/b\n2:cpu,cpuacct:/\n1:name=systemd:/x\n0::/docker/abc/d\n";
        let own: Vec<_> = trees(HYBRID, cgroup).into_iter().map(|t| (t.v1.is_some(), t.own)).collect();
        let wanted = [
            (true, "/sys/fs/cgroup/cpu,cpuacct"),
            (true, "/sys/fs/cgroup/memory/a/b"),
            (false, "/sys/fs/cgroup/unified/d"),
        ];
        assert_eq!(own, wanted.map(|(v1, dir)| (v1, PathBuf::from(dir))));
        // Not below the mount, and nothing of anybody else's.
        assert_eq!(trees(HYBRID, "0::/../x\n0::/other\n"), []);
        assert_eq!(trees("", "0::/\n"), []);
    }

    #[test]
    fn both_versions_are_told_the_same_limits() {
        let limits = Limits { memory: Some(5 << 20), cpu_milli: Some(250) };
        assert_eq!((MEMORY.v2)(&limits), [("memory.max", "5242880".to_owned())]);
        assert_eq!((MEMORY.v1)(&limits), [("memory.limit_in_bytes", "5242880".to_owned())]);
        assert_eq!((CPU.v2)(&limits), [("cpu.max", "25000 100000".to_owned())]);
        let v1 = [("cpu.cfs_period_us", "100000".to_owned()), ("cpu.cfs_quota_us", "25000".to_owned())];
        assert_eq!((CPU.v1)(&limits), v1);
        assert_eq!(quota(1), 1000, "the least that the kernel takes");
        let none = Limits::default();
        assert!((MEMORY.v1)(&none).is_empty() && (CPU.v2)(&none).is_empty() && (CPU.v1)(&none).is_empty());
    }

    #[test]
    fn a_controller_that_is_nowhere_is_named() {
        let limits = Limits { cpu_milli: Some(1), ..Limits::default() };
        let found = needed(&trees(HYBRID, "4:memory:/\n"), &limits);
        assert!(found.unwrap_err().to_string().contains("`cpu`"));
    }
}
