//! `delta`: from one machine file to the next.

use std::path::Path;

use anyhow::Result;
use artifact::{MachineFile, VerifyOptions};
use serde_json::json;

use crate::args::{Delta, DeltaVerb, Global};
use crate::cmd::silent;
use crate::ui;
use crate::ui::say::tell;

pub fn delta(words: &Delta, global: &Global) -> Result<u8> {
    match &words.verb {
        DeltaVerb::Create { old, new, output } => {
            let report = delta::create(&verified(old)?, &verified(new)?, output)?;
            let share = report.bytes as f64 * 100.0 / report.new_bytes.max(1) as f64;
            if global.json {
                ui::json(&json!({
                    "bytes": report.bytes, "new_bytes": report.new_bytes, "same_pages": report.same_pages,
                    "similar_pages": report.similar_pages, "whole_pages": report.whole_pages,
                }))?;
            } else if !silent(global) {
                let (bytes, new) = (ui::bytes(report.bytes), ui::bytes(report.new_bytes));
                tell!("smolvm: {}: {bytes}, {share:.1} % of {new}", output.display());
            }
        }
        DeltaVerb::Apply { old, delta, output } => {
            let id = delta::apply(&verified(old)?, delta, output)?;
            if global.json {
                ui::json(&json!({ "id": id.to_string() }))?;
            } else if !silent(global) {
                tell!("smolvm: {}: every byte is as it was made", output.display());
            }
        }
    }
    Ok(0)
}

/// A machine file whose every byte was looked at.
fn verified(path: &Path) -> Result<MachineFile> {
    let file = MachineFile::open_path(path)?;
    file.verify_all(VerifyOptions::default())?;
    Ok(file)
}
