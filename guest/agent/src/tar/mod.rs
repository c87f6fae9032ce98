//! tar streams: POSIX ustar with pax records (IEEE Std 1003.1, pax; extended attributes as `SCHILY.xattr.*`), reading
//! GNU long names and base-256 numbers too.

pub mod read;
pub mod write;

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// What an entry is; the values are the header's type flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = b'0',
    /// Another name of an earlier file.
    Hardlink = b'1',
    /// A symbolic link.
    Symlink = b'2',
    /// A character device.
    Character = b'3',
    /// A block device.
    Block = b'4',
    /// A directory.
    Directory = b'5',
    /// A named pipe.
    Fifo = b'6',
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the archive; a directory's without the final slash.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of the contents that follow, in bytes.
    pub size: u64,
    /// Modification time: seconds since the epoch, nanoseconds.
    pub mtime: (i64, u32),
    /// What a link names.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// An entry with nothing special.
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Entry {
        Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: (0, 0),
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::read::Reader;
    use super::write::Writer;
    use super::*;
    use std::io::Read;

    fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (entry, contents) in entries {
            writer.entry(entry).expect("an entry");
            writer.contents(&mut contents.as_slice(), entry.size).expect("contents");
        }
        writer.finish().expect("an end")
    }

    fn back(bytes: &[u8]) -> std::io::Result<Vec<(Entry, Vec<u8>)>> {
        let mut reader = Reader::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut contents = Vec::new();
            reader.contents().read_to_end(&mut contents)?;
            found.push((entry, contents));
        }
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut plain = Entry::new("dir/plain", Kind::File);
        plain.size = 700;
        (plain.mode, plain.uid, plain.gid, plain.mtime) =
            (0o4755, 1000, 3_000_000, (1_700_000_000, 123_456_789));
        let mut long = Entry::new(vec![b'n'; 300], Kind::File);
        long.size = 512;
        long.xattrs = vec![(b"user.note".to_vec(), b"a=b\nc\0d".to_vec())];
        let mut link = Entry::new("link", Kind::Symlink);
        link.link = vec![b't'; 200];
        let mut whiteout = Entry::new("gone", Kind::Character);
        whiteout.mtime = (-5, 0);
        let mut device = Entry::new("dev", Kind::Block);
        device.device = (259, 70_000);
        let name = Entry::new([b'a', 0xff, b'/', b'b'], Kind::Directory);
        let entries = vec![
            (plain, vec![7; 700]),
            (long, vec![9; 512]),
            (link, vec![]),
            (whiteout, vec![]),
            (device, vec![]),
            (name, vec![]),
        ];
        let bytes = archive(&entries);
        assert_eq!(bytes.len() % BLOCK, 0);
        assert_eq!(back(&bytes).expect("readable"), entries);
    }

    #[test]
    fn unread_contents_are_skipped() {
        let mut first = Entry::new("first", Kind::File);
        first.size = 5000;
        let second = Entry::new("second", Kind::Directory);
        let bytes = archive(&[(first, vec![1; 5000]), (second, vec![])]);
        let mut reader = Reader::new(bytes.as_slice());
        assert_eq!(reader.next_entry().expect("readable").expect("first").path, b"first");
        assert_eq!(reader.next_entry().expect("readable").expect("second").path, b"second");
        assert!(reader.next_entry().expect("readable").is_none());
    }

    #[test]
    fn a_cut_or_changed_archive_is_refused() {
        let mut entry = Entry::new("file", Kind::File);
        entry.size = 1000;
        let bytes = archive(&[(entry, vec![1; 1000])]);
        assert!(back(&bytes[..900]).is_err());
        let mut changed = bytes.clone();
        changed[0] ^= 1;
        assert!(back(&changed).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(noise in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let _ = back(&noise);
        }

        /// A valid header with one wild byte and a right checksum reaches the deeper paths.
        #[test]
        fn wild_headers_are_read_or_refused(at in 0usize..500, value: u8, pax in "[ -~\n]{0,200}") {
            let mut entry = Entry::new(vec![b'p'; 150], Kind::File);
            entry.size = pax.len() as u64;
            let mut bytes = archive(&[(entry, pax.into_bytes())]);
            bytes[at] = value;
            super::write::fix_checksum(&mut bytes[..BLOCK]);
            let _ = back(&bytes);
        }
    }
}
