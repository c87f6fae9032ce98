//! Debian's programs in the guest compute what they compute on the host: CPython's own tests, sqlite
//! and openssl. The packages are fetched once, with this system's apt; without apt or a network the
//! tests are skipped aloud.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Home, debian, rounds, text};

/// Unpacked without their scripts (the long setting builds them properly): Python with its tests, sqlite, openssl.
const PACKAGES: [&str; 24] = [
    "dash",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libncursesw6",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libpython3.11-testsuite",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libtinfo6",
    "libuuid1",
    "media-types",
    "openssl",
    "python3.11",
    "python3.11-minimal",
    "sqlite3",
    "tzdata",
    "zlib1g",
    "coreutils",
];

/// A directory with the packages' files.
fn root() -> Option<PathBuf> {
    debian::root(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("userland"), &PACKAGES)
}

/// The machine file of that root; built by the program.
fn machine(home: &Home, root: &Path) {
    let definition =
        format!("name = \"userland\"\ncpus = 2\nmemory = \"768MiB\"\n[root]\ndir = \"{}\"\n", root.display());
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
}

fn python(home: &Home, tests: &[&str]) {
    for test in tests {
        let output =
            home.run(&["run", "./userland.smolmachine", "--", "python3.11", "-m", "test", "-q", test]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && out.contains("SUCCESS"), "{test}: {out}\n{err}");
    }
}

#[test]
fn cpythons_own_tests_pass() {
    let Some(root) = root() else { return };
    let home = Home::new("soft");
    machine(&home, &root);
    python(&home, &["test_struct", "test_float", "test_math"]);
    if rounds(0, 1) == 1 {
        python(&home, &["test_hashlib", "test_json", "test_re"]);
    }
}

/// The same program from the same root on the host, without any right: by its own loader.
fn on_the_host(root: &Path, program: &str, script: &str) -> String {
    let lib = |place: &str| root.join(place).join("x86_64-linux-gnu").display().to_string();
    let loader = root.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let prefix = format!(
        "{} --library-path {}:{} {}",
        loader.display(),
        lib("lib"),
        lib("usr/lib"),
        root.join(program).display()
    );
    let script = script.replace("PROGRAM", &prefix);
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    // The machine's CPU is x86-64-v2: sin and exp round otherwise with FMA (in 1 of some 100,000 rows).
    command.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn the_same(program: &str, script: &str) {
    let Some(root) = root() else { return };
    let home = Home::new("soft");
    machine(&home, &root);
    let wanted = on_the_host(&root, program, script);
    let inside = script.replace("PROGRAM", &format!("/{program}"));
    let got = home.ok(&["run", "./userland.smolmachine", "--", "sh", "-c", &inside]);
    assert!(wanted.len() > 100, "{wanted}");
    assert_eq!(got, wanted);
}

#[test]
fn sqlite_computes_what_it_computes_on_the_host() {
    let rows = rounds(20_000, 400_000);
    let script = format!(
        "PROGRAM :memory: \"
         CREATE TABLE t(id INTEGER PRIMARY KEY, x REAL, s TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {rows})
           INSERT INTO t SELECT i, sin(i)*sqrt(i)/(i%7+1), hex(i*2654435761 % 4294967296) FROM n;
         CREATE INDEX byx ON t(x); CREATE INDEX bys ON t(s);
         SELECT count(*), printf('%.17g', sum(x)), printf('%.17g', avg(x*x)), min(s), max(s) FROM t;
         SELECT s, printf('%.17g', x) FROM t ORDER BY x DESC LIMIT 20;
         SELECT id%10 AS k, count(*), printf('%.17g', total(exp(-abs(x)))), group_concat(substr(s,1,1), '')
           FROM (SELECT * FROM t WHERE s > 'A' ORDER BY s LIMIT 500) GROUP BY k ORDER BY k;
         DELETE FROM t WHERE x < 0; SELECT count(*), printf('%.17g', sum(x)) FROM t; PRAGMA integrity_check;\""
    );
    the_same("usr/bin/sqlite3", &script);
}

#[test]
fn openssl_computes_what_it_computes_on_the_host() {
    let lines = rounds(20_000, 1_000_000);
    let data = format!("seq 1 {lines}");
    let mut script = String::from("set -e\n");
    for digest in ["md5", "sha1", "sha256", "sha512", "sha3-256", "blake2b512", "ripemd160"] {
        script += &format!("{data} | PROGRAM dgst -provider default -provider legacy -{digest} -r || true\n");
    }
    script += &format!("{data} | PROGRAM dgst -sha256 -hmac key -r\n");
    for cipher in ["aes-128-cbc", "aes-256-ctr", "chacha20", "camellia-192-cbc", "aria-128-cbc"] {
        let (key, iv) = ("00112233445566778899aabbccddeeff0123456789abcdeffedcba9876543210", "0f".repeat(16));
        let bits = if cipher.contains("128") {
            32
        } else if cipher.contains("192") {
            48
        } else {
            64
        };
        let key = &key[..bits];
        script += &format!("{data} | PROGRAM enc -{cipher} -K {key} -iv {iv} | PROGRAM dgst -sha256 -r\n");
        script += &format!(
            "{data} | PROGRAM enc -{cipher} -K {key} -iv {iv} | PROGRAM enc -d -{cipher} -K {key} -iv {iv} | tail -1\n"
        );
    }
    script += "PROGRAM kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt pass:x -kdfopt salt:y -kdfopt iter:2000 PBKDF2\n";
    script += "for n in 170141183460469231731687303715884105727 170141183460469231731687303715884105729; do \
               PROGRAM prime $n; done\n";
    the_same("usr/bin/openssl", &script);
}

/// The same packages, built as a user builds them: scripts run inside the machine.
#[test]
fn packages_are_configured_inside_the_machine() {
    if rounds(0, 1) == 0 {
        eprintln!("skipped: minutes; the long setting (cargo xtask ci --long) runs it");
        return;
    }
    if root().is_none() {
        return;
    }
    let home = Home::new("soft");
    let definition = "name = \"userland\"\ncpus = 2\nmemory = \"768MiB\"\n\
                      [root]\npackages = [\"libpython3.11-testsuite\", \"sqlite3\", \"openssl\"]\n";
    fs::write(home.path("Smolfile"), definition).unwrap();
    home.ok(&["build", "-q"]);
    let inspected: serde_json::Value =
        serde_json::from_str(&home.ok(&["inspect", "--json", "./userland.smolmachine"])).unwrap();
    let ratio = inspected["sizes"]["ratio"].as_f64().unwrap();
    assert!(ratio <= 1.1, "{}", inspected["sizes"]);
    python(&home, &["test_struct", "test_float", "test_math", "test_hashlib", "test_json", "test_re"]);
}
