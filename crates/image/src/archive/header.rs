//! A tar header block: fields at fixed places, numbers as octal text or, from GNU, as binary.
//! Sources: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

/// Tar's unit.
pub const BLOCK: usize = 512;

/// One header block whose checksum is right.
pub struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// None when the checksum is wrong: this is no header.
    pub fn parse(block: &'a [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| match i {
                148..156 => u64::from(b' '),
                _ => u64::from(*b),
            })
            .sum();
        (header.number(148..156) == Some(sum as i64)).then_some(header)
    }

    /// Name with the ustar prefix before it.
    pub fn name(&self) -> Vec<u8> {
        let name = self.text(0..100);
        // GNU's old format keeps other things where ustar has its prefix.
        let prefix = match self.0[257..265] == *b"ustar\x0000" {
            true => self.text(345..500),
            false => b"",
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    pub fn link(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    pub fn kind(&self) -> u8 {
        self.0[156]
    }

    pub fn mode(&self) -> Option<u16> {
        Some((self.number(100..108)? & 0o7777) as u16)
    }

    pub fn uid(&self) -> Option<u32> {
        self.number(108..116)?.try_into().ok()
    }

    pub fn gid(&self) -> Option<u32> {
        self.number(116..124)?.try_into().ok()
    }

    pub fn size(&self) -> Option<u64> {
        self.number(124..136)?.try_into().ok()
    }

    pub fn mtime(&self) -> Option<i64> {
        self.number(136..148)
    }

    pub fn major(&self) -> Option<u32> {
        self.number(329..337)?.try_into().ok()
    }

    pub fn minor(&self) -> Option<u32> {
        self.number(337..345)?.try_into().ok()
    }

    fn text(&self, range: std::ops::Range<usize>) -> &'a [u8] {
        let field = &self.0[range];
        let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
        &field[..end]
    }

    /// Octal digits between blanks and NULs (nothing at all is 0), or a big-endian two's
    /// complement number marked by the first byte's high bit.
    fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 {
            // The mark is bit 7; bit 6 is the sign.
            let sign = field[0] & 0x40 != 0;
            let first = (field[0] & 0x7f) | if sign { 0x80 } else { 0 };
            let (high, low) = field.split_at(field.len().saturating_sub(8));
            let fill = if sign { 0xff } else { 0 };
            let mut bytes = [fill; 8];
            bytes[8 - low.len()..].copy_from_slice(low);
            if high.is_empty() {
                bytes[8 - low.len()] = first;
            } else if first != fill || high[1..].iter().any(|b| *b != fill) {
                return None;
            }
            let value = i64::from_be_bytes(bytes);
            return ((value < 0) == sign).then_some(value);
        }
        let digits: Vec<u8> =
            field.iter().copied().skip_while(|b| *b == b' ').take_while(|b| !matches!(b, b' ' | 0)).collect();
        digits.iter().try_fold(0i64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
    }
}
