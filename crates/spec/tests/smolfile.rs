//! Definitions through the public surface: what is accepted, what is refused and how it is said.

use spec::{DefinitionError, ReadyCheck, parse};

const WHOLE: &str = r#"
name = "search"
cpus = 1
memory = "512MiB"
cpu = "portable"

[root]
packages = ["python3", "postgresql=15+*"]
files = { "app" = "/srv/app" }

[build]
steps = ["useradd app"]

[run]
command = ["python3", "/srv/app/server.py"]
env = { DATA = "/srv/app/data" }
user = "app"
workdir = "/srv/app"

[ready]
http = "http://127.0.0.1:8000/healthz"
timeout = "120s"

[[snapshot]]
name = "migrated"
after_step = 1
[[snapshot]]
name = "ready"
at = "ready"

[hooks]
before_snapshot = ["/srv/app/quiesce"]
after_restore = ["/srv/app/reseed"]
"#;

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn the_whole_example_resolves() {
    let spec = parse(WHOLE).unwrap().resolve("x").unwrap();
    assert_eq!((spec.name.as_str(), spec.vcpus, spec.memory), ("search", 1, 512 << 20));
    let ready = spec.ready.unwrap();
    assert_eq!(ready.check, ReadyCheck::Http("http://127.0.0.1:8000/healthz".into()));
    assert_eq!(ready.timeout_ms, 120_000);
    assert_eq!(spec.service.unwrap().argv, ["python3", "/srv/app/server.py"]);
}

#[test]
fn an_empty_definition_is_the_built_in_machine() {
    let file = parse("").unwrap();
    assert_eq!(file.resolve("demo").unwrap().name, "demo");
    assert!(file.root.packages.is_none());
}

#[test]
fn a_string_command_goes_through_the_shell() {
    let spec = parse("[run]\ncommand = \"a && b\"").unwrap().resolve("x").unwrap();
    assert_eq!(spec.service.unwrap().argv, ["/bin/sh", "-c", "a && b"]);
}

#[test]
fn unknown_keys_name_the_line_and_the_nearest_key() {
    let error = parse("name = \"a\"\nmemroy = \"1GiB\"\n").unwrap_err();
    assert_eq!(
        error,
        DefinitionError::At { line: 2, what: "unknown key `memroy`; did you mean `memory`?".into() }
    );
    assert!(refusal("[root]\npakages = []").contains("did you mean `packages`"));
}

#[test]
fn values_out_of_range_name_the_line() {
    assert!(refusal("\nmemory = \"0MiB\"").starts_with("line 2: memory"));
    assert!(refusal("memory = 512").contains("512MiB"));
    assert!(refusal("cpus = 0").contains("1 to 16"));
    assert!(refusal("name = \"Not Good\"").starts_with("line 1"));
}

#[test]
fn contradictions_are_refused() {
    assert!(refusal("[root]\npackages = [\"a\"]\ndir = \"b\"").contains("2 sources (packages, dir)"));
    assert!(refusal("[run]\ncommand = \"x\"\n[ready]\nport = 1\nlog = \"x\"").contains("2 checks"));
    assert!(refusal("[ready]\nport = 1").contains("[run]"));
    assert!(
        refusal("[[snapshot]]\nname = \"a\"\nafter_step = 2\n[build]\nsteps = [\"x\"]")
            .contains("has 1 step;")
    );
    assert!(refusal("[root]\nfiles = { \"a\" = \"../b\" }").contains("absolute"));
}

#[test]
fn snapshots_are_points_of_one_life_in_their_order() {
    let with = |points: &str| format!("[build]\nsteps = [\"a\", \"b\"]\n[run]\ncommand = \"x\"\n{points}");
    let point = |name: &str, when: &str| format!("[[snapshot]]\nname = \"{name}\"\n{when}\n");
    let refused = |points: &[String]| refusal(&with(&points.concat()));
    let (one, two) = (point("one", "after_step = 1"), point("two", "after_step = 2"));
    let (ready, again) = (point("ready", "at = \"ready\""), point("again", "at = \"ready\""));
    assert_eq!(parse(&with(&[one.clone(), two.clone(), ready.clone()].concat())).unwrap().snapshot.len(), 3);
    assert_eq!(refused(&[two.clone(), one.clone()]).split(':').next(), Some("line 10"));
    assert!(refused(&[two, one.clone()]).contains("`one` comes before `two`"));
    assert!(refused(&[ready.clone(), one.clone()]).contains("\"ready\" last"));
    assert!(refused(&[ready, again]).starts_with("line 10: `ready` is at = \"ready\" already"));
    assert!(refused(&[one.clone(), one]).starts_with("line 9: two snapshots are named `one`"));
    assert!(refused(&[point("No Name", "after_step = 1")]).starts_with("line 6: snapshot name"));
    assert!(refused(&[point("none", "after_step = 0")]).starts_with("line 7: after_step = 0"));
    assert!(refused(&[point("none", "")]).contains("exactly one of after_step = N and at"));
    assert!(refused(&[point("both", "after_step = 1\nat = \"ready\"")]).contains("exactly one"));
    let unserved = "[build]\nsteps = [\"a\"]\n[[snapshot]]\nname = \"r\"\nat = \"ready\"";
    assert!(refusal(unserved).starts_with("line 5: at = \"ready\" needs a [run] command"));
}

#[test]
fn complaints_name_the_line_of_their_key() {
    assert!(refusal("[root]\n\ndir = \"a\"\ntar = \"b\"").starts_with("line 4: [root] has 2 sources"));
    assert!(refusal("[root]\npackages = []").starts_with("line 2: packages is empty"));
    let empty = "[build]\nsteps = [\n  \"a\",\n  \" \",\n]";
    assert!(refusal(empty).starts_with("line 4: step 2 is empty"));
    let run = |line: &str| format!("[run]\ncommand = [\"a\"]\n{line}");
    assert!(refusal(&run("user = \"a b\"")).starts_with("line 3: user"));
    assert!(refusal(&run("workdir = \"srv\"")).starts_with("line 3: workdir"));
    assert!(refusal("[run]\ncommand = \"\"").starts_with("line 2: command"));
    assert!(refusal("name = \"a\"\nmemory = 512").starts_with("line 2"));
}

#[test]
fn the_published_schema_is_the_programs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/smolfile.schema.json");
    let published = std::fs::read_to_string(path).unwrap();
    let now = spec::json_schema();
    assert!(
        published.trim_end() == now.trim_end(),
        "docs/smolfile.schema.json is old; `smolvm check --schema` prints the new one"
    );
    for key in ["packages", "after_restore", "workdir", "timeout"] {
        assert!(now.contains(key), "{key}");
    }
}

#[test]
fn the_network_is_off_unless_asked_for() {
    let net = |text: &str| spec::parse(text).unwrap().resolve("m").unwrap().net;
    assert_eq!(net(""), None);
    assert_eq!(net("net = false"), None);
    assert_eq!(net("net = true"), Some(spec::NetSpec::default()));
    let listed = net("[net]\nallow_hosts = [\"example.org\"]\nallow_cidrs = [\"203.0.113.0/24\"]").unwrap();
    assert_eq!((listed.allow_hosts.len(), listed.allow_cidrs.len()), (1, 1));
    assert!(spec::parse("[net]\nallow = []").is_err());
    assert!(!serde_json::to_string(&spec::parse("").unwrap().resolve("m").unwrap()).unwrap().contains("net"));
}

#[test]
fn a_machine_listens_where_it_says_and_where_it_is_asked_whether_it_is_ready() {
    let ports = |text: &str| {
        parse(&format!("[run]\ncommand = \"x\"\n{text}")).unwrap().resolve("m").unwrap().tcp_ports()
    };
    assert_eq!(ports(""), [0u16; 0]);
    assert_eq!(ports("ports = [9000, 80, 80]"), [80, 9000]);
    assert_eq!(ports("ports = [9000]\n[ready]\nport = 8000"), [8000, 9000]);
    for (url, port) in [
        ("http://127.0.0.1:8000/healthz", 8000),
        ("http://[::1]:81?a=b", 81),
        ("http://[::1]/", 80),
        ("http://localhost", 80),
    ] {
        assert_eq!(ports(&format!("[ready]\nhttp = \"{url}\"")), [port], "{url}");
    }
    assert_eq!(ports("[ready]\nlog = \"listening on 80\""), [0u16; 0]);
    assert!(refusal("[run]\ncommand = \"x\"\nports = [0]").starts_with("line 3: ports: 0"));
    assert!(refusal("[run]\ncommand = \"x\"\nports = [65536]").starts_with("line 3"));
}
