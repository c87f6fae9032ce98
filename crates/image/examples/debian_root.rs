//! Builds an unconfigured root from Debian packages and says what it took:
//! `cargo run --release -p image --example debian_root -- CACHE OUT.erofs PACKAGE…`
//! The configure script is written to OUT.erofs.sh. With UPPER=FILE in the environment, that tar
//! of an overlay's upper directory is merged and OUT.erofs.final written.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::time::Instant;

use image::debian::{Cache, Request, fetch, resolve, unpack};
use image::{ErofsOptions, Limits, MergeOptions, Spool, hex, merge_upper, write_erofs};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [cache, out, packages @ ..] = &arguments[..] else {
        return Err("usage: debian_root CACHE OUT PACKAGE…".into());
    };
    let cache = Cache::open(Path::new(cache))?;
    let request = Request::new(packages, "amd64")?;
    let clock = Instant::now();
    let locks = resolve(&request, &cache)?;
    println!("{} packages resolved in {:?}", locks.len(), clock.elapsed());
    fetch(&locks, &request.arch, &cache, &|count, bytes| {
        println!("downloading {count} packages, {bytes} bytes");
    })?;
    println!("fetched at {:?}", clock.elapsed());
    let spool = Spool::new(&std::env::temp_dir(), 64 << 30)?;
    let root = unpack(&locks, &cache, &spool, Limits::default(), &|_| {})?;
    println!(
        "{} entries, {} bytes, epoch {}, unpacked at {:?}",
        root.tree.entries(),
        root.tree.bytes(),
        root.epoch.secs,
        clock.elapsed()
    );
    root.warnings.iter().for_each(|line| println!("warning: {line}"));
    let options = ErofsOptions { uuid: [7; 16], build_time: root.epoch };
    let info = write_erofs(&root.tree, &mut BufWriter::new(File::create(out)?), &options)?;
    println!("{info:?} at {:?}", clock.elapsed());
    std::fs::write(format!("{out}.sh"), &root.configure_script)?;
    if let Some(upper) = std::env::var_os("UPPER") {
        let merge = MergeOptions { epoch: root.epoch, settle: true };
        let merged = merge_upper(root.tree, BufReader::new(File::open(upper)?), &spool, &merge)?;
        let mut file = BufWriter::new(File::create(format!("{out}.final"))?);
        println!("{:?} at {:?}", write_erofs(&merged, &mut file, &options)?, clock.elapsed());
        println!("tree {}", hex(&merged.digest()?));
    }
    Ok(())
}
