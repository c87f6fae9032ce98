//! Packages become a root with dpkg's database, from the cache alone; apt is asked where it is.

use std::fs;
use std::path::Path;

use image::debian::{Cache, DebianError, PackageSpec, Request, fetch, resolve, unpack};
use image::tree::{Kind, Limits, Time};
use image::{DebianRoot, PackageLock, Spool, Tree, hex};
use sha2::{Digest, Sha256};

/// A package made here: control text, control members, files (a target makes a link).
struct Deb {
    name: &'static str,
    more: &'static str,
    info: Vec<(&'static str, &'static str)>,
    files: Vec<(&'static str, &'static str)>,
}

fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes());
    out.extend_from_slice(bytes);
    if bytes.len() % 2 == 1 {
        out.push(b'\n');
    }
}

fn tar_of(files: &[(&str, &str)], mtime: u64) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(mtime);
        header.set_size(0);
        header.set_mode(0o755);
        if let Some(target) = text.strip_prefix("-> ") {
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, target).expect("link");
        } else if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            builder.append_data(&mut header, path, &b""[..]).expect("directory");
        } else {
            header.set_size(text.len() as u64);
            builder.append_data(&mut header, path, text.as_bytes()).expect("file");
        }
    }
    builder.into_inner().expect("archive")
}

impl Deb {
    fn bytes(&self) -> Vec<u8> {
        let Self { name, more, info, files } = self;
        let control = format!(
            "Package: {name}\nVersion: 1:2.0~x-1\nArchitecture: amd64\nMaintainer: A <a@b>\n{more}Description: {name}\n longer\n .\n text\n"
        );
        let mut control_files = vec![("./control", control.as_str())];
        control_files.extend(info.iter().copied());
        let mut out = b"!<arch>\n".to_vec();
        member(&mut out, "debian-binary", b"2.0\n");
        let control = zstd::encode_all(&tar_of(&control_files, 900)[..], 1).expect("zstd");
        member(&mut out, "control.tar.zst", &control);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        std::io::Write::write_all(&mut xz, &tar_of(files, 1000)).expect("xz");
        member(&mut out, "data.tar.xz", &xz.finish().expect("xz"));
        out
    }

    /// Puts it into the cache as if apt had fetched it.
    fn cached(&self, cache: &Path) -> PackageLock {
        let bytes = self.bytes();
        let sha256 = hex(&Sha256::digest(&bytes));
        fs::write(cache.join(format!("sha256/{sha256}.deb")), &bytes).expect("written");
        PackageLock {
            name: self.name.into(),
            version: "1:2.0~x-1".into(),
            arch: "amd64".into(),
            sha256,
            size: bytes.len() as u64,
        }
    }
}

fn root(debs: &[Deb]) -> Result<DebianRoot, DebianError> {
    let dir = tempfile::tempdir().expect("directory");
    let cache = Cache::open(dir.path())?;
    let locks: Vec<PackageLock> = debs.iter().map(|deb| deb.cached(dir.path())).collect();
    fetch(&locks, "amd64", &cache, &|_, _| panic!("nothing is missing"))?;
    let spool = Spool::new(dir.path(), 1 << 30).expect("spool");
    unpack(&locks, &cache, &spool, Limits::default(), &|_| {})
}

fn read(tree: &Tree, path: &str) -> String {
    let id = tree.lookup_follow(path).unwrap_or_else(|| panic!("{path} is there"));
    match tree.get(id).expect("node").kind() {
        Kind::File(content) => String::from_utf8(content.to_vec(1 << 20).expect("read")).expect("text"),
        other => panic!("{path} is {other:?}"),
    }
}

fn base() -> Deb {
    Deb {
        name: "base-files",
        more: "Essential: yes\n",
        info: vec![
            ("./preinst", "#!/bin/sh\n"),
            ("./conffiles", "/etc/issue\nremove-on-upgrade /etc/gone\n"),
            ("./md5sums", "x  y\n"),
        ],
        files: vec![
            ("./", ""),
            ("./bin/", ""),
            ("./bin/tool", "tool"),
            ("./etc/issue", "Debian"),
            ("./var/run/", ""),
        ],
    }
}

fn library() -> Deb {
    Deb {
        name: "libx",
        more: "Multi-Arch: same\nReplaces: base-files (<< 3), other\n",
        info: vec![
            ("./triggers", "interest-noawait /usr/lib/x\ninterest ldconfig\nactivate other\n"),
            ("./preinst", "#!/bin/sh\n"),
        ],
        files: vec![
            ("./lib64/ld.so", "loader"),
            ("./usr/bin/tool", "newer tool"),
            ("./usr/lib/l", "-> ../x"),
        ],
    }
}

#[test]
fn packages_land_merged_with_a_database_that_dpkg_can_go_on_from() {
    let root = root(&[base(), library()]).expect("root");
    let tree = &root.tree;
    assert_eq!(root.epoch, Time::from_secs(1000));
    assert_eq!(root.warnings, [""; 0]);
    for (link, target) in [("bin", "usr/bin"), ("lib64", "usr/lib64"), ("var/run", "/run")] {
        let kind = tree.get(tree.lookup(link).expect(link)).expect("node").kind();
        assert!(matches!(kind, Kind::Symlink(to) if **to == *target.as_bytes()), "{link}: {kind:?}");
    }
    assert!(tree.lookup("lib32").is_none());
    assert_eq!(read(tree, "usr/lib64/ld.so"), "loader");
    assert_eq!(read(tree, "bin/tool"), "newer tool");
    let status = read(tree, "var/lib/dpkg/status");
    assert!(status.starts_with("Package: base-files\nStatus: install ok unpacked\n"), "{status}");
    let conffiles = "Conffiles:\n /etc/issue 2fac32e53f863ee0f0e1f23b36dda5d4\n";
    let md5 = md5_of("Debian");
    assert!(status.contains(&conffiles.replace("2fac32e53f863ee0f0e1f23b36dda5d4", &md5)), "{status}");
    assert!(status.contains("\nDescription: libx\n longer\n .\n text\n\n"), "{status}");
    assert_eq!(read(tree, "var/lib/dpkg/info/base-files.list"), "/.\n/bin\n/etc/issue\n/var/run\n");
    let list = read(tree, "var/lib/dpkg/info/libx:amd64.list");
    assert_eq!(list, "/lib64/ld.so\n/usr/bin/tool\n/usr/lib/l\n");
    assert_eq!(read(tree, "var/lib/dpkg/info/base-files.md5sums"), "x  y\n");
    assert_eq!(read(tree, "var/lib/dpkg/triggers/File"), "/usr/lib/x libx:amd64/noawait\n");
    assert_eq!(read(tree, "var/lib/dpkg/triggers/ldconfig"), "libx:amd64\n");
    assert_eq!(read(tree, "var/lib/dpkg/info/format"), "1\n");
    let script = &root.configure_script;
    assert!(script.contains(
        "\npreinst base-files amd64 base-files\ndpkg --configure base-files\npreinst libx amd64 libx:amd64\n"
    ));
    assert!(script.contains("dpkg --configure -a"));
}

fn md5_of(text: &str) -> String {
    use md5::Md5;
    hex(&Md5::digest(text))
}

#[test]
fn the_same_packages_give_the_same_tree() {
    let digest = || root(&[base(), library()]).expect("root").tree.digest().expect("digest");
    assert_eq!(digest(), digest());
}

#[test]
fn two_packages_with_one_file_are_said_aloud() {
    let mut other = library();
    other.more = "";
    let root = root(&[base(), other]).expect("root");
    assert_eq!(root.warnings.len(), 1);
    assert!(root.warnings[0].contains("/bin/tool"), "{:?}", root.warnings);
    let mut first = base();
    first.more = "Replaces: libx\n";
    let mut second = library();
    second.more = "";
    let root = self::root(&[first, second]).expect("root");
    assert_eq!(read(&root.tree, "bin/tool"), "tool");
}

#[test]
fn scripts_run_when_what_they_rely_on_is_ready() {
    let deb = |name, more| Deb { name, more, info: vec![("./preinst", "#!/bin/sh\n")], files: vec![] };
    let root = root(&[
        deb("essential", "Essential: yes\nDepends: libc, awk (>= 1)\n"),
        deb("libc", ""),
        deb("base-passwd", "Essential: yes\nPre-Depends: essential\n"),
        deb("mawk", "Provides: awk\n"),
        deb("server", "Pre-Depends: common (>= 1) | other\nDepends: late\n"),
        deb("late", ""),
        deb("common", "Depends: library\n"),
        deb("library", "Multi-Arch: same\n"),
    ])
    .expect("root");
    let all: Vec<&str> = root
        .configure_script
        .lines()
        .filter(|line| line.starts_with("preinst ") || line.starts_with("dpkg "))
        .collect();
    assert_eq!(
        all,
        [
            "preinst essential amd64 essential",
            "preinst libc amd64 libc",
            "preinst mawk amd64 mawk",
            "dpkg --configure essential libc mawk",
            "preinst base-passwd amd64 base-passwd",
            "dpkg --configure base-passwd",
            "preinst common amd64 common",
            "preinst library amd64 library:amd64",
            "dpkg --configure common library:amd64",
            "preinst server amd64 server",
            "preinst late amd64 late",
            "dpkg --configure -a",
        ]
    );
}

#[test]
fn a_diverted_file_waits_for_its_diversion() {
    let diverter = || Deb {
        name: "wrapper",
        more: "",
        info: vec![("./preinst", "#!/bin/sh\ndpkg-divert --package wrapper --rename /usr/bin/tool\n")],
        files: vec![("./usr/bin/tool", "wrapped")],
    };
    for debs in [[base(), diverter()], [diverter(), base()]] {
        let root = root(&debs).expect("root");
        assert_eq!(root.warnings, [""; 0]);
        assert_eq!(read(&root.tree, "usr/bin/tool"), "wrapped");
        assert_eq!(read(&root.tree, "var/lib/dpkg/aside/1"), "tool");
        assert!(root.configure_script.contains("\naside 1 '/bin/tool'\n"), "{}", root.configure_script);
        assert!(read(&root.tree, "var/lib/dpkg/info/base-files.list").contains("/bin/tool\n"));
    }
}

#[test]
fn a_changed_package_is_not_used() {
    let dir = tempfile::tempdir().expect("directory");
    let cache = Cache::open(dir.path()).expect("cache");
    let lock = base().cached(dir.path());
    let path = dir.path().join(format!("sha256/{}.deb", lock.sha256));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let spool = Spool::new(dir.path(), 1 << 30).expect("spool");
    let refused = unpack(&[lock], &cache, &spool, Limits::default(), &|_| {});
    assert!(matches!(refused, Err(DebianError::Hash { .. })));
    assert!(!path.exists(), "the next build fetches it again");
}

#[test]
fn damaged_packages_are_errors() {
    for cut in [8, 70, 200, 400] {
        let dir = tempfile::tempdir().expect("directory");
        let cache = Cache::open(dir.path()).expect("cache");
        let mut bytes = base().bytes();
        bytes.truncate(bytes.len() - cut.min(bytes.len() - 1));
        let mut lock = base().cached(dir.path());
        lock.sha256 = hex(&Sha256::digest(&bytes));
        fs::write(dir.path().join(format!("sha256/{}.deb", lock.sha256)), &bytes).unwrap();
        let spool = Spool::new(dir.path(), 1 << 30).expect("spool");
        assert!(unpack(&[lock], &cache, &spool, Limits::default(), &|_| {}).is_err(), "cut {cut}");
    }
}

#[test]
fn locks_that_would_be_options_or_shell_are_refused() {
    let dir = tempfile::tempdir().expect("directory");
    let cache = Cache::open(dir.path()).expect("cache");
    let good = base().cached(dir.path());
    let bad = [
        PackageLock { name: "-oDir::Bin::dpkg=x".into(), ..good.clone() },
        PackageLock { name: "a;b".into(), ..good.clone() },
        PackageLock { version: "1 2".into(), ..good.clone() },
        PackageLock { version: "1*".into(), ..good.clone() },
        PackageLock { arch: "../x".into(), ..good.clone() },
        PackageLock { sha256: "../../etc/passwd".into(), ..good.clone() },
    ];
    for lock in bad {
        let refused = fetch(std::slice::from_ref(&lock), "amd64", &cache, &|_, _| {});
        assert!(matches!(refused, Err(DebianError::Spec { .. })), "{lock:?}");
    }
}

#[test]
fn specs_are_names_and_versions_only() {
    let spec = PackageSpec::parse("postgresql=15+*").expect("spec");
    assert_eq!((spec.name.as_str(), spec.version.as_deref()), ("postgresql", Some("15+*")));
    assert!(PackageSpec::parse("g++").is_ok());
    for bad in ["", "x", "-y", "apt-", "?essential", "a b", "Name", "a=", "./x.deb", "a=1;b", "a/stable"] {
        assert!(PackageSpec::parse(bad).is_err(), "{bad}");
    }
}

/// Needs a Debian with package lists; no network.
#[test]
fn apt_finds_what_a_root_needs() {
    let dir = tempfile::tempdir().expect("directory");
    let cache = Cache::open(dir.path()).expect("cache");
    let ask = |spec: &str| resolve(&Request::new(&[spec], "amd64").expect("request"), &cache);
    let locks = match ask("python3-minimal") {
        Ok(locks) => locks,
        Err(e @ (DebianError::NoApt { .. } | DebianError::NoLists)) => {
            eprintln!("SKIPPED: {e}");
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let has = |name: &str| locks.iter().any(|lock| lock.name == name);
    assert!(has("libc6") && has("dpkg") && has("dash") && has("python3-minimal"));
    assert!(!has("apt"), "a built root has no use for it");
    assert!(locks.iter().all(|lock| lock.sha256.len() == 64 && lock.size > 0));
    match ask("python3-minimial") {
        Err(DebianError::NoPackage { hint, .. }) => assert!(hint.contains("python3-minimal"), "{hint}"),
        other => panic!("{other:?}"),
    }
    match ask("python3-minimal=1.0*") {
        Err(DebianError::NoVersion { offered, .. }) => assert!(offered.contains('.'), "{offered}"),
        other => panic!("{other:?}"),
    }
}
