//! A file's bytes beside what it cannot do without: the pages of its memory, root image and disk changes that are not
//! zero, each content once.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, bail};
use artifact::{Digest, MachineFile, SectionKind};
use clap::Args;
use guestmem::GuestMemory;

use crate::lab::Lab;

#[derive(Args)]
pub struct Size {
    /// Guests to build, of `idle`, `python` and `node`; the last two fetch packages by this system's apt
    #[arg(long, value_delimiter = ',', default_values = ["idle", "python", "node"])]
    guests: Vec<String>,
}

const PAGE: usize = 4096;
/// Memory of each guest.
const MEMORY: u64 = 512 << 20;

fn definition(guest: &str) -> Result<String> {
    let rest = match guest {
        "idle" => String::new(),
        "python" => "[root]\npackages = [\"python3\"]\n[run]\ncommand = \"exec python3 -c 'import time; \
                     d = {i: str(i) * 9 for i in range(200000)}; print(1, flush=True); time.sleep(1e9)'\"\n\
                     [ready]\nlog = \"1\"\n"
            .to_owned(),
        "node" => "[root]\npackages = [\"nodejs\"]\n[run]\ncommand = \"exec node -e 'const d = {}; for (let i = 0; \
                   i < 100000; i++) d[i] = String(i).repeat(9); console.log(1); setInterval(() => d, 1e9)'\"\n\
                   [ready]\nlog = \"1\"\n"
            .to_owned(),
        other => bail!("{other} is none of the guests: idle, python, node"),
    };
    Ok(format!("name = \"m\"\nmemory = \"{}MiB\"\n{rest}", MEMORY >> 20))
}

impl Size {
    pub fn run(&self, program: &Path) -> Result<()> {
        for guest in &self.guests {
            let lab = Lab::new(program)?;
            lab.build(&definition(guest)?, "m.smolmachine")?;
            let file = MachineFile::open_path(&lab.path("m.smolmachine"))?;
            let pages = pages(&file)?;
            let needed = pages.unique * PAGE as u64;
            println!(
                "{guest:<8} file {:>8} KiB; unique pages {:>8} KiB: {:.3}; not unique {:>8} KiB: {:.3}",
                file.len() >> 10,
                needed >> 10,
                file.len() as f64 / needed.max(1) as f64,
                (pages.all * PAGE as u64) >> 10,
                file.len() as f64 / (pages.all * PAGE as u64).max(1) as f64,
            );
        }
        Ok(())
    }
}

/// Pages that are not zero.
#[derive(Default)]
struct Counted {
    all: u64,
    unique: u64,
    seen: HashSet<Digest>,
}

impl Counted {
    fn add(&mut self, page: &[u8]) {
        if page.iter().any(|byte| *byte != 0) {
            self.all += 1;
            self.unique += u64::from(self.seen.insert(Digest::of(page)));
        }
    }
}

fn pages(file: &MachineFile) -> Result<Counted> {
    let mut counted = Counted::default();
    let memory = GuestMemory::new(MEMORY)?;
    snapshot::map_memory(file, None, &memory)?;
    let mut page = [0; PAGE];
    for number in 0..memory.page_count() {
        memory.read_page(number, &mut page);
        counted.add(&page);
    }
    for kind in [SectionKind::RootImage, SectionKind::DiskDeltaPages, SectionKind::Kernel] {
        let Some(section) = file.section(kind) else { continue };
        for at in (0..section.len).step_by(PAGE) {
            let piece = &mut page[..((section.len - at) as usize).min(PAGE)];
            file.file().read_exact_at(piece, section.offset + at)?;
            counted.add(piece);
        }
    }
    Ok(counted)
}
