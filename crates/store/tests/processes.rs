//! Several processes at one store, some of which are killed.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use artifact::temp::TempStyle;
use common::{Home, check_objects, child, files, orders, write_machine};
use store::{Error, PrunePolicy, Store};

/// How often a child is killed: few in the usual run, all with `SMOLVM_LONG`.
fn kills() -> u64 {
    if std::env::var_os("SMOLVM_LONG").is_some() { 500 } else { 50 }
}

/// What a child does; without orders nothing.
#[test]
fn in_a_child() {
    let Some(orders) = orders() else { return };
    let [what, store, file, style] = &orders[..] else { panic!("{orders:?}") };
    let style = if style == "named" { TempStyle::Named } else { TempStyle::Auto };
    let store = Store::open(Path::new(store)).unwrap().with_temp_style(style);
    match what.as_str() {
        "import" => println!("\nid {}", store.import(Path::new(file)).unwrap().id()),
        "hold" => {
            let _pin = store.import(Path::new(file)).unwrap();
            println!("\nholding");
            // Until killed.
            std::thread::sleep(Duration::from_secs(600));
        }
        "import-again-and-again" => {
            println!("\nbegun");
            loop {
                let id = store.import(Path::new(file)).unwrap().id();
                // Killed here, too, that is no fault.
                let _ = store.remove(&id.to_string());
            }
        }
        other => panic!("{other}"),
    }
}

fn orders_for<'a>(what: &'a str, home: &'a Home, file: &'a Path, style: &'a str) -> [&'a str; 4] {
    [what, home.store.root().to_str().unwrap(), file.to_str().unwrap(), style]
}

/// Reads a child's lines until one is `line`.
fn wait_for(output: impl Read, line: &str) {
    assert!(BufReader::new(output).lines().any(|l| l.unwrap() == line), "the child never said {line:?}");
}

#[test]
fn many_processes_import_one_file() {
    for style in ["auto", "named"] {
        let home = Home::new();
        let path = home.path("machine");
        let id = write_machine(&path, 1, 5_000_000);
        let children: Vec<_> =
            (0..6).map(|_| child("in_a_child", &orders_for("import", &home, &path, style))).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains(&format!("id {id}")), "{text}");
        }
        assert_eq!(check_objects(&home.store), 1);
        assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
    }
}

#[test]
fn prune_waits_for_nobody_and_takes_nothing_that_another_process_holds() {
    let home = Home::new();
    let (path, id) = home.machine("machine", 1);
    let mut holder = child("in_a_child", &orders_for("hold", &home, &path, "auto"));
    wait_for(holder.stdout.take().unwrap(), "holding");
    assert!(home.store.prune(PrunePolicy::default()).unwrap().objects.is_empty());
    assert!(matches!(home.store.remove(&id.to_string()), Err(Error::InUse { .. })));
    assert!(home.store.images().unwrap()[0].in_use);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(home.store.prune(PrunePolicy::default()).unwrap().objects.len(), 1);
}

#[test]
fn a_pin_is_either_good_or_says_that_the_object_is_gone() {
    let home = Home::new();
    let (path, id) = home.machine("machine", 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruner = scope.spawn(|| {
            let mut pruned = 0;
            while !done.load(Ordering::Relaxed) {
                pruned += home.store.prune(PrunePolicy::default()).unwrap().objects.len();
            }
            pruned
        });
        for _ in 0..300 {
            match home.store.import(&path) {
                Ok(pin) => {
                    // Held: whatever the pruner does, the object stays under its name.
                    assert_eq!(pin.open().unwrap().id(), id);
                    assert!(pin.path().exists());
                }
                // Pruned three times in a row the moment it was there.
                Err(error) => assert!(matches!(error, Error::Gone { .. }), "{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(pruner.join().unwrap() > 0);
    });
}

#[test]
fn an_import_killed_at_any_instant_leaves_nothing_half() {
    for style in ["auto", "named"] {
        let home = Home::new();
        let path = home.path("machine");
        write_machine(&path, 1, 2_000_000);
        for round in 0..kills() / 2 {
            let mut importer =
                child("in_a_child", &orders_for("import-again-and-again", &home, &path, style));
            let mut output = BufReader::new(importer.stdout.take().unwrap());
            wait_for(&mut output, "begun");
            // Instants spread over several imports, by a sequence that fills the interval evenly.
            let micros = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49;
            std::thread::sleep(Duration::from_micros(micros));
            importer.kill().unwrap();
            importer.wait().unwrap();
            check_objects(&home.store);
            home.store.gc_temps().unwrap();
            assert_eq!(files(&home.store.root().join("tmp")), [""; 0]);
        }
        // And it still works.
        home.store.import(&path).unwrap();
        assert_eq!(check_objects(&home.store), 1);
    }
}
