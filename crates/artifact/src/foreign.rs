//! Files that are no machine files, by what they are and what to do with them.
//!
//! Only for a message: nothing is opened as what is guessed here.

use std::fmt;

/// What a file is instead of a machine file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// No bytes.
    Empty,
    /// A directory.
    Directory,
    /// A device, pipe or socket.
    NotRegular,
    /// A pack or checkpoint of smol-machines/smolvm: `SMOLPACK` starts its 64-byte footer.
    SmolPack,
    /// A Smolfile: a definition.
    Smolfile,
    /// A machine file whose writing did not come to its end: the header is missing.
    Unfinished,
    /// Anything with a signature of its own: its name.
    Named(&'static str),
    /// An archive that can be a root's source: its name.
    Archive(&'static str),
    /// A disk image: its name.
    Disk(&'static str),
    /// A file system image: its name.
    FileSystem(&'static str),
    /// Text.
    Text,
    /// Nothing that is known here.
    Unknown,
}

impl Foreign {
    /// What to do about it, as the second half of a sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Foreign::Empty | Foreign::Unfinished => "build it again with `smolvm build`, or copy it again",
            Foreign::Directory => "name the file in it, or use `dir:PATH` for a root directory",
            Foreign::NotRegular => "copy it to a regular file first",
            Foreign::SmolPack => {
                "that program's files have another format: build this machine from its Smolfile"
            }
            Foreign::Smolfile => "build it with `smolvm build -f`, then run the file that this writes",
            Foreign::Archive(_) => {
                "use it as `tar` under [root] in a Smolfile, or as `docker-archive:FILE` if `docker save` made it"
            }
            Foreign::Disk(_) | Foreign::FileSystem(_) => {
                "use its files as `dir` or `tar` under [root] in a Smolfile"
            }
            Foreign::Named(_) | Foreign::Text | Foreign::Unknown => {
                "machine files are written by `smolvm build` and `smolvm snapshot`"
            }
        }
    }

    /// Names the file of `len` bytes with these first and last bytes. `head` should have 4096 bytes where the
    /// file has, `tail` 512.
    pub(crate) fn recognise(head: &[u8], tail: &[u8], len: u64) -> Foreign {
        if len == 0 {
            return Foreign::Empty;
        }
        if is_smolpack(head, tail) {
            return Foreign::SmolPack;
        }
        let by_magic = SIGNATURES
            .iter()
            .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)));
        if let Some((_, _, what)) = by_magic {
            return *what;
        }
        if tail.starts_with(b"conectix") {
            return Foreign::Disk("a VHD disk image");
        }
        if head.iter().all(|&byte| byte == 0) {
            return Foreign::Unfinished;
        }
        text(head).unwrap_or(Foreign::Unknown)
    }
}

/// The other smolvm's footer is the file's last 64 bytes; a bare one may also be a file of its own.
fn is_smolpack(head: &[u8], tail: &[u8]) -> bool {
    const MAGIC: &[u8] = b"SMOLPACK";
    let footer = tail.len().checked_sub(64).and_then(|at| tail.get(at..));
    head.starts_with(MAGIC) || footer.is_some_and(|footer| footer.starts_with(MAGIC))
}

/// Signatures and where they stand. The more telling ones come first.
const SIGNATURES: &[(usize, &[u8], Foreign)] = &[
    (0, b"QFI\xfb", Foreign::Disk("a qcow2 disk image")),
    (0, b"KDMV", Foreign::Disk("a VMDK disk image")),
    (0, b"# Disk DescriptorFile", Foreign::Disk("a VMDK disk image")),
    (0, b"vhdxfile", Foreign::Disk("a VHDX disk image")),
    (64, b"\x7f\x10\xda\xbe", Foreign::Disk("a VDI disk image")),
    (0, b"\x1f\x8b", Foreign::Archive("a gzip file (perhaps a .tar.gz)")),
    (0, b"\x28\xb5\x2f\xfd", Foreign::Archive("a zstd file (perhaps a .tar.zst)")),
    (0, b"\xfd7zXZ\0", Foreign::Archive("an xz file (perhaps a .tar.xz)")),
    (0, b"BZh", Foreign::Archive("a bzip2 file (perhaps a .tar.bz2)")),
    (257, b"ustar", Foreign::Archive("a tar archive")),
    (0, b"!<arch>\n", Foreign::Named("an ar archive (perhaps a Debian package)")),
    (0, b"PK\x03\x04", Foreign::Named("a zip archive")),
    (0, b"PK\x05\x06", Foreign::Named("an empty zip archive")),
    (0, b"\x7fELF", Foreign::Named("an ELF program")),
    (0x202, b"HdrS", Foreign::Named("a Linux kernel (bzImage)")),
    (0, b"070701", Foreign::Named("a cpio archive (an initramfs)")),
    (0, b"MZ", Foreign::Named("a Windows or EFI program")),
    (0, b"#!", Foreign::Named("a script")),
    (0, b"hsqs", Foreign::FileSystem("a squashfs image")),
    (1024, b"\xe2\xe1\xf5\xe0", Foreign::FileSystem("an erofs image")),
    (1080, b"\x53\xef", Foreign::FileSystem("an ext2/3/4 image")),
    (0, b"XFSB", Foreign::FileSystem("an XFS image")),
    (512, b"EFI PART", Foreign::Disk("a partitioned disk image (GPT)")),
    (510, b"\x55\xaa", Foreign::Disk("a partitioned disk image (MBR)")),
];

/// Text, and whether it looks like a Smolfile.
fn text(head: &[u8]) -> Option<Foreign> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The read may end inside a character; only so much may be missing.
        Err(error) if head.len() - error.valid_up_to() < 4 => {
            std::str::from_utf8(head.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    const TABLES: [&str; 6] = ["[root]", "[build]", "[run]", "[ready]", "[[snapshot]]", "[hooks]"];
    let smolfile = text.lines().any(|line| TABLES.contains(&line.trim()));
    Some(if smolfile { Foreign::Smolfile } else { Foreign::Text })
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Foreign::Empty => "an empty file",
            Foreign::Directory => "a directory",
            Foreign::NotRegular => "a device, pipe or socket",
            Foreign::SmolPack => "a pack of another program called smolvm (SMOLPACK)",
            Foreign::Smolfile => "a Smolfile (a definition)",
            Foreign::Unfinished => "a file of zeros, perhaps one whose writing was cut off",
            Foreign::Named(name)
            | Foreign::Archive(name)
            | Foreign::Disk(name)
            | Foreign::FileSystem(name) => name,
            Foreign::Text => "a text file",
            Foreign::Unknown => "a file of unknown kind",
        })
    }
}
