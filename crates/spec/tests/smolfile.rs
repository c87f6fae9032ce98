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
        refusal("[[snapshot]]\nname = \"a\"\nafter_step = 2\n[build]\nsteps = [\"x\"]").contains("1 steps")
    );
    assert!(refusal("[root]\nfiles = { \"a\" = \"../b\" }").contains("absolute"));
}

#[test]
fn the_schema_names_every_table() {
    let schema = spec::json_schema();
    for key in ["packages", "after_restore", "workdir", "timeout"] {
        assert!(schema.contains(key), "{key}");
    }
}
