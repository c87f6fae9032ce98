//! A test's source to code, by nasm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// What FEX puts before a test of 32 bits.
const BEFORE_32_BIT: &str = "BITS 32\norg 10000h\nmov eax, 0x17\nmov ds, ax\nmov es, ax";

/// Where nasm looks for what tests include, and where it works.
pub struct Assembler {
    includes: PathBuf,
    work: TempDir,
}

impl Assembler {
    /// For the tests below `dir`, which has or stands beside the directory of what they include.
    ///
    /// # Errors
    /// Where nasm does not run.
    pub fn new(dir: &Path) -> Result<Assembler> {
        let nasm = Command::new("nasm").arg("-v").output();
        nasm.context("nasm does not run: install the package nasm")?;
        let own = dir.join("Includes");
        let includes = if own.is_dir() { own } else { dir.join("../ASM/Includes") };
        Ok(Assembler { includes, work: tempfile::tempdir().context("making a directory to assemble in")? })
    }

    /// The code, for [`crate::machine::CODE`].
    ///
    /// # Errors
    /// With what nasm says.
    pub fn assemble(&self, source: &str, is_32_bit: bool) -> Result<Vec<u8>> {
        let (text, code) = (self.work.path().join("test.asm"), self.work.path().join("test.bin"));
        let before = if is_32_bit { BEFORE_32_BIT } else { "BITS 64" };
        fs::write(&text, format!("{before}\n{source}\nret\n")).context("writing the source for nasm")?;
        let _ = fs::remove_file(&code);
        let mut nasm = Command::new("nasm");
        // With its `/`: nasm puts the name behind it as it is.
        nasm.arg("-i").arg(format!("{}/", self.includes.display())).arg(&text).arg("-o").arg(&code);
        let output = nasm.output().context("starting nasm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nasm: {}", said.lines().next().unwrap_or("no reason"));
        fs::read(&code).context("reading what nasm wrote")
    }
}
