//! Prints what `smolvm doctor` will say about KVM.

fn main() {
    let start = std::time::Instant::now();
    println!("works well: {:?} ({:?})", hv_kvm::works_well(), start.elapsed());
    let start = std::time::Instant::now();
    println!("{}", serde_json::to_string_pretty(&hv_kvm::report()).unwrap_or_default());
    println!("report: {:?}", start.elapsed());
}
