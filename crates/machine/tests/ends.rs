//! How a machine ends when something of ours breaks.

use std::sync::Arc;
use std::time::Duration;

use disk::{FileDisk, Overlay};
use machine::{EngineChoice, Machine, MachineConfig, Outcome};

/// Where the kernels of these tests stand.
const KERNEL: u64 = 0x100_0000;

/// An ELF file of one segment that is entered at its first byte (ELF-64 object file format, version 1.5).
fn kernel(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    let words = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let halves =
        |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    halves(&mut file, &[2, 62, 1, 0]);
    words(&mut file, &[KERNEL, 64, 0]);
    halves(&mut file, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // PT_LOAD, readable and executable, behind this header.
    words(&mut file, &[1 | 5 << 32, 120, KERNEL, KERNEL, code.len() as u64, code.len() as u64, 1]);
    file.extend(code);
    file
}

#[test]
fn a_vcpu_thread_that_panics_ends_the_machine() {
    const BYTES: u64 = 1 << 20;
    let file = || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        file
    };
    let root = Arc::new(FileDisk::section(Arc::new(file()), 0, BYTES).unwrap());
    let scratch = Arc::new(Overlay::new(root.clone(), file()).unwrap());
    let config = MachineConfig::new(EngineChoice::Soft, 2, 64 << 20, root, scratch);
    // mov al, 'x'; mov dx, 0x3f8; out dx, al; hlt
    let code = [0xb0, b'x', 0x66, 0xba, 0xf8, 0x03, 0xee, 0xf4];
    // The console is written by the vCPU's own thread.
    let console = Box::new(|_: &[u8]| panic!("the console breaks, as this test wants it to"));
    let machine = Machine::boot(config, &kernel(&code), &[], "", console).unwrap();
    machine.resume();
    let outcome = machine.wait(Some(Duration::from_secs(300)));
    assert!(matches!(&outcome, Some(Outcome::Failed(why)) if why.contains("vCPU 0")), "{outcome:?}");
    // The other vCPU's thread ends with it.
    drop(machine);
}
