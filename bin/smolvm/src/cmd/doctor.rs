//! `doctor`: what this host can do.

use anyhow::Result;
use serde_json::json;

use crate::args::{Doctor, Global};
use crate::ui;

pub fn doctor(doctor: &Doctor, global: &Global) -> Result<u8> {
    let chosen = machine::choose(machine::EngineChoice::Auto);
    if let Some(path) = &doctor.file {
        let file = artifact::MachineFile::open_path(path)?;
        let spec = instance::read_spec(&file)?;
        println!(
            "{}: runs here on {} ({} vCPUs, {})",
            path.display(),
            chosen.engine,
            spec.vcpus,
            ui::bytes(spec.memory)
        );
        return Ok(0);
    }
    let kvm = machine::kvm_report();
    if global.json {
        ui::json(&json!({ "engine": chosen, "kvm": kvm }))?;
        return Ok(0);
    }
    println!("engine   {}", chosen.engine);
    if !chosen.why.is_empty() {
        println!("kvm      not used: {}", chosen.why);
    }
    for fact in &kvm.facts {
        println!(
            "  {} {:<22} {}  ({})",
            if fact.good { "+" } else { "-" },
            fact.name,
            fact.value,
            fact.explanation
        );
    }
    Ok(0)
}
