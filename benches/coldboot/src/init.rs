//! A first process that ends the machine with its first instructions, in the place and size of the agent.

/// `reboot(LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART)` (reboot(2)), then a loop.
const CODE: [u8; 24] = [
    0xb8, 0xa9, 0x00, 0x00, 0x00, // mov eax, 169
    0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, 0xfee1dead
    0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, 672274793
    0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, 0x01234567
    0x0f, 0x05, // syscall
    0xeb, 0xfe, // jmp $
];

const LOADED_AT: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// A static ELF64 program of one segment (System V ABI, chapters 4 and 5) with `CODE` at its entry.
fn program() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let size = HEADERS + CODE.len() as u64;
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    for word in [LOADED_AT + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    for word in [0, LOADED_AT, LOADED_AT, size, size, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

/// The embedded initramfs with the start of its `/init` overwritten: the kernel unpacks as much as ever.
pub fn initramfs() -> Option<Vec<u8>> {
    let mut archive = assets::initramfs();
    let program = program();
    // The one ELF file in it is the agent, at the start of its data.
    let at = archive.windows(5).position(|window| window == b"\x7fELF\x02")?;
    archive.get_mut(at..at + program.len())?.copy_from_slice(&program);
    Some(archive)
}
