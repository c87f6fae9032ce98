//! Any bytes as a kernel's image: the bzImage's header, each unpacker, the ELF file's segments. Whatever it claims, no
//! more than a machine file's reader takes comes of it. The bytes are tried as an image, and as the payload of a whole one.
#![no_main]

use build::KernelImage;
use libfuzzer_sys::fuzz_target;

/// Most bytes of an unpacked kernel.
const MOST: usize = 256 << 20;

fuzz_target!(|bytes: &[u8]| {
    look(bytes.to_vec());
    look(around(bytes));
});

fn look(image: Vec<u8>) {
    match KernelImage::unpack(image) {
        Ok(kernel) => {
            assert!(kernel.vmlinux.len() <= MOST);
            assert!(kernel.release().is_none_or(|release| release.len() <= 256 * 3));
            assert!(kernel.place().is_ok_and(|place| place.start <= place.end) || kernel.place().is_err());
        }
        Err(what) => assert!(what.starts_with("it"), "{what}"),
    }
}

/// A bzImage of boot protocol 2.15 with this payload.
fn around(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x236] = 1;
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}
