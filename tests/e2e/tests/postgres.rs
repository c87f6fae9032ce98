//! examples/postgres: a database with its data as one file, asked from the host, copied, and kept on a volume.
//!
//! The definition is the example's own but for the root: there its packages are configured inside the machine, which
//! takes minutes unoptimised (the long setting does it); else a first step makes the cluster that a package's script
//! makes there.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use e2e::{Home, debian, engines, rounds};

/// What the server, its client and the example's script need; unpacked without their scripts.
const PACKAGES: &str = "\
    coreutils dash libacl1 libattr1 libaudit1 libc-bin libc6 libcap-ng0 libcap2 libcom-err2 libffi8 \
    libgcc-s1 libgcrypt20 libgmp10 libgnutls30 libgpg-error0 libgssapi-krb5-2 libhogweed6 libicu72 \
    libidn2-0 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libldap-2.5-0 liblz4-1 liblzma5 \
    libnettle8 libp11-kit0 libpam0g libpcre2-8-0 libpq5 libreadline8 libsasl2-2 libselinux1 libssl3 \
    libstdc++6 libsystemd0 libtasn1-6 libtinfo6 libunistring2 libxml2 libzstd1 postgresql-15 postgresql- \
    client-15 tzdata util-linux zlib1g";
/// Before the example's own steps: what the packages' scripts do, as far as it is needed.
const CLUSTER: &str = "mkdir -p /var/lib/postgresql/15 /etc/postgresql/15/main /run && \
     chown -R postgres:postgres /var/lib/postgresql && : >/etc/postgresql/15/main/pg_ident.conf && \
     setpriv --reuid=postgres --regid=postgres --clear-groups /usr/lib/postgresql/15/bin/initdb \
     -D /var/lib/postgresql/15/main -A trust --no-instructions --no-sync --locale=C.UTF-8 >/dev/null";
const ORDERS: &str = "select count(*) from orders";
/// Rows of that table in the example.
const ROWS: u64 = 100_000;

/// The example's definition and files in `home`; false, said aloud, where its packages cannot be had.
fn define(home: &Home) -> bool {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/postgres");
    for entry in fs::read_dir(&example).unwrap().flatten() {
        fs::copy(entry.path(), home.path(entry.file_name().to_str().unwrap())).unwrap();
    }
    let Some(root) = root() else { return false };
    if rounds(0, 1) == 0 {
        let text = fs::read_to_string(home.path("Smolfile")).unwrap();
        let text = text.replace("packages = [\"postgresql-15\"]", &format!("dir = \"{}\"", root.display()));
        let text = text.replace("steps = [", &format!("steps = [\"{CLUSTER}\", "));
        assert!(text.contains("dir = ") && text.contains("initdb"), "{text}");
        fs::write(home.path("Smolfile"), text).unwrap();
    }
    true
}

fn root() -> Option<PathBuf> {
    let root = debian::root(
        &Path::new(env!("CARGO_TARGET_TMPDIR")).join("postgres"),
        &PACKAGES.split_whitespace().collect::<Vec<_>>(),
    )?;
    let files = [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:102::/var/lib/postgresql:/bin/sh\n"),
        ("group", "root:x:0:\npostgres:x:102:\n"),
    ];
    for (name, text) in files {
        fs::write(root.join("etc").join(name), text).unwrap();
    }
    Some(root)
}

/// A connection to the database from the host: version 3.0 of the protocol, as far as a simple query needs it
/// (PostgreSQL's documentation, "Frontend/Backend Protocol").
struct Connection(TcpStream);

impl Connection {
    fn open(port: u16) -> Self {
        let mut this = Self(TcpStream::connect(("127.0.0.1", port)).unwrap());
        let mut startup = 196_608u32.to_be_bytes().to_vec();
        startup.extend(b"user\0app\0database\0shop\0\0");
        this.0.write_all(&(startup.len() as u32 + 4).to_be_bytes()).unwrap();
        this.0.write_all(&startup).unwrap();
        this.rows();
        this
    }

    /// The first column of each row.
    fn ask(&mut self, sql: &str) -> Vec<String> {
        let mut query = vec![b'Q'];
        query.extend((sql.len() as u32 + 5).to_be_bytes());
        query.extend(sql.as_bytes());
        query.push(0);
        self.0.write_all(&query).unwrap();
        self.rows()
    }

    fn count(&mut self, sql: &str) -> u64 {
        self.ask(sql)[0].parse().unwrap()
    }

    /// Reads until the server is ready for the next query.
    fn rows(&mut self) -> Vec<String> {
        let mut rows = Vec::new();
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head).expect("an answer");
            let mut body = vec![0; u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4];
            self.0.read_exact(&mut body).expect("a whole answer");
            match head[0] {
                b'Z' => return rows,
                b'E' => panic!("the server says: {}", String::from_utf8_lossy(&body)),
                // Columns, the first one's length, its text.
                b'D' => {
                    let length = u32::from_be_bytes(body[2..6].try_into().unwrap()) as usize;
                    rows.push(String::from_utf8_lossy(&body[6..6 + length]).into_owned());
                }
                _ => {}
            }
        }
    }
}

/// A port of the host that nobody has now.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Resumes the file as a machine; its port on the host.
fn resume(home: &Home, name: &str) -> u16 {
    let port = free_port();
    home.ok(&["run", "-d", "--name", name, "-p", &format!("{port}:5432"), "./postgres.smolmachine"]);
    port
}

/// Boots it on a volume, waits until it answers; its port on the host.
fn boot_on_volume(home: &Home, name: &str) -> u16 {
    let port = free_port();
    let (publish, volume) = (format!("{port}:5432"), "pgdata:/var/lib/postgresql");
    home.ok(&["run", "-d", "--cold", "--name", name, "-v", volume, "-p", &publish, "./postgres.smolmachine"]);
    home.ok(&["exec", name, "sh", "-c", "until sh /srv/pg/pg warm 2>/dev/null; do :; done"]);
    port
}

#[test]
fn a_database_is_one_file_and_its_data_is_each_machines_own() {
    for engine in engines() {
        let home = Home::new(engine);
        if !define(&home) {
            return;
        }
        home.ok(&["build", "-q"]);

        // As soon as the command returns, the first connection is answered: nothing is recovered or read again.
        let port = resume(&home, "first");
        let mut first = Connection::open(port);
        assert_eq!(first.count(ORDERS), ROWS);
        let log = home.ok(&["logs", "first"]);
        assert!(!log.contains("recovery"), "{log}");
        assert_eq!(first.ask("show shared_buffers"), ["64MB"], "the example's own configuration");
        assert_eq!(first.ask("show server_encoding"), ["UTF8"]);

        // Machines of one file, all at once: what one deletes the others have.
        let count = rounds(3, 10);
        thread::scope(|scope| {
            for n in 1..=count {
                let home = &home;
                scope.spawn(move || {
                    let mut own = Connection::open(resume(home, &format!("pg-{n}")));
                    own.ask(&format!("delete from orders where id <= {n}"));
                    assert_eq!(own.count(ORDERS), ROWS - n, "machine {n}");
                });
            }
        });
        assert_eq!(first.count(ORDERS), ROWS);
        // A machine keeps what it wrote, over a freeze and with its shared buffers lost.
        home.ok(&["freeze", "pg-2"]);
        home.ok(&["start", "pg-2"]);
        let psql = ["exec", "pg-2", "sh", "/srv/pg/pg", "psql", "-d", "shop", "-c", ORDERS];
        assert_eq!(home.ok(&psql), format!("{}\n", ROWS - 2));
        home.ok(&["stop", "pg-2"]);
        home.ok(&["start", "pg-2"]);
        home.ok(&["exec", "pg-2", "sh", "-c", "until sh /srv/pg/pg warm 2>/dev/null; do :; done"]);
        assert_eq!(home.ok(&psql), format!("{}\n", ROWS - 2));
        for name in (1..=count).map(|n| format!("pg-{n}")).chain(["first".to_owned()]) {
            home.ok(&["rm", "-f", &name]);
        }

        // On a volume: a new one takes over the file's data, another machine finds what was committed to it, though
        // the one before was ended in the middle of things.
        let port = boot_on_volume(&home, "writer");
        let mut writer = Connection::open(port);
        assert_eq!(writer.count(ORDERS), ROWS);
        writer.ask("insert into customers values (20001, 'kept', 'Oslo')");
        home.ok(&["rm", "-f", "writer"]);
        let port = boot_on_volume(&home, "reader");
        let kept = "select name from customers where id > 20000";
        assert_eq!(Connection::open(port).ask(kept), ["kept"]);
        // What is frozen resumes on its volume.
        home.ok(&["freeze", "reader"]);
        home.ok(&["start", "reader"]);
        assert_eq!(Connection::open(port).ask(kept), ["kept"]);
    }
}
