//! The embedded bytes. The table is written by `build.rs`.

/// One embedded file.
pub struct Part {
    /// Size when unpacked, in bytes.
    size: usize,
    /// The file as one zstd frame.
    zstd: &'static [u8],
}

impl Part {
    /// The zstd frame.
    pub fn packed(&self) -> &'static [u8] {
        self.zstd
    }

    /// Unpacks it. The bytes are the program's own, so this fails only when memory is exhausted.
    pub fn unpack(&self) -> Vec<u8> {
        zstd::bulk::decompress(self.zstd, self.size).expect("an embedded part unpacks to its size")
    }
}

include!(concat!(env!("OUT_DIR"), "/parts.rs"));
