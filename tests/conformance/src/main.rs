//! `cargo run --release -p conformance -- DIR [SUBSTRING]`: DIR is FEX's `unittests/ASM` (or `unittests/32Bit_ASM`).

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(dir) = words.next().map(PathBuf::from) else {
        eprintln!("usage: conformance DIR [SUBSTRING]; DIR is unittests/ASM of a checkout of FEX");
        return ExitCode::from(2);
    };
    match conformance::suite::run(&dir, &words.next().unwrap_or_default()) {
        Ok(report) => {
            print!("{report}");
            ExitCode::from(u8::from(!report.failed.is_empty() || !report.surprising.is_empty()))
        }
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}
