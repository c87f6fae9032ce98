//! `-P`: the ports that a machine says it listens on become ports of this host because its user asks for it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use e2e::oci::layout;
use e2e::{Home, text};
use serde_json::{Value, json};

/// Two web servers, of which the definition names one and the readiness check the other.
const DEFINITION: &str = "\
name = \"web\"
memory = \"64MiB\"
[run]
command = \"echo one >/srv/index.html; httpd -p 8000 -h /srv; httpd -f -p 9000 -h /srv\"
ports = [8000]
[ready]
port = 9000
";

fn page(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the published port");
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Guest ports in order, and where they are reached.
fn ports(value: &Value) -> Vec<(u64, String)> {
    let port = |pair: &Value| (pair[1].as_u64().unwrap(), pair[0].as_str().unwrap().to_owned());
    value["ports"].as_array().unwrap().iter().map(port).collect()
}

#[test]
fn a_machine_says_what_it_listens_on_and_its_user_publishes_it() {
    let home = Home::new("soft");
    fs::write(home.path("Smolfile"), DEFINITION).unwrap();
    home.ok(&["build", "-q"]);
    let json = |args: &[&str]| -> Value { serde_json::from_str(&home.ok(args)).unwrap() };
    // What a file says opens nothing.
    home.ok(&["run", "-d", "--name", "closed", "web"]);
    assert_eq!(json(&["inspect", "closed", "--json"])["ports"], json!([]));
    let opened = ports(&json(&["run", "-d", "--json", "--name", "open", "-P", "web"]));
    assert_eq!(opened.iter().map(|port| port.0).collect::<Vec<_>>(), [8000, 9000]);
    for (_, address) in &opened {
        assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{address}");
        assert!(page(address).ends_with("one\n"), "{address}");
    }
    assert_eq!(ports(&json(&["inspect", "open", "--json"])), opened);
    // Another machine of the same file has other ports; those are told to people, too.
    let told = home.run(&["run", "-d", "--name", "other", "-P", "web"]);
    let others = ports(&json(&["inspect", "other", "--json"]));
    assert!(others.iter().all(|port| !opened.contains(port)), "{others:?} and {opened:?}");
    for (guest, address) in &others {
        let line = format!("smolvm: {address} is the machine's port {guest}\n");
        assert!(text(&told.stderr).contains(&line), "{}", text(&told.stderr));
    }
    // What is named is as it is named. It is chosen anew at each start.
    let port = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let named = ["run", "-d", "--json", "--name", "named", "-P", "-p", &format!("{port}:9000"), "web"];
    let named = ports(&json(&named));
    assert_eq!((named.len(), &named[0]), (2, &(9000, port)));
    home.ok(&["stop", "open"]);
    let again = ports(&json(&["start", "open", "--json"]));
    // It boots: the guest knows when its servers are up.
    let up = "until wget -q -O /dev/null http://127.0.0.1:9000/index.html; do :; done";
    home.ok(&["exec", "open", "sh", "-c", up]);
    assert!(page(&again[0].1).ends_with("one\n"), "{again:?}");
}

#[test]
fn an_image_exposes_its_ports_the_same_way() {
    let home = Home::new("soft");
    layout(&home.path("img"));
    let words = ["run", "-d", "--json", "-P", "oci:img:1", "sleeps"];
    let started: Value = serde_json::from_str(&home.ok(&words)).unwrap();
    assert_eq!(ports(&started).iter().map(|port| port.0).collect::<Vec<_>>(), [8080], "of TCP");
    let told = home.run(&["run", "-P", "--", "true"]);
    assert!(text(&told.stderr).contains("names no port"), "{}", text(&told.stderr));
}
