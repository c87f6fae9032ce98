//! A kernel's configuration: the text that Kconfig writes, or the one that the kernel carries (CONFIG_IKCONFIG).

use std::collections::HashMap;
use std::io::Read;

/// Marks around the packed text in a kernel (kernel/configs.c).
const START: &[u8] = b"IKCFG_ST";
/// Most bytes of the text; the largest distributions' have 300 KiB.
const MOST: u64 = 4 << 20;

/// What a kernel was configured with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    /// Of the Linux that it is for, as its first lines say: `6.1.192`.
    pub(super) version: String,
    values: HashMap<String, String>,
}

impl Config {
    /// Reads the text; `None` when it is none of an x86 kernel.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() as u64 > MOST {
            return None;
        }
        let text = String::from_utf8_lossy(text);
        // "# Linux/x86 6.1.192 Kernel Configuration", in the first lines.
        let head = text.lines().take(8).find_map(|line| line.strip_prefix("# Linux/x86"))?;
        let version = head.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let set = text.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='));
        let values = set.map(|(key, value)| (key.to_owned(), value.trim().to_owned())).collect();
        Some(Self { version: version.to_owned(), values })
    }

    /// The one in a `vmlinux`, if there is one.
    pub(super) fn embedded(vmlinux: &[u8]) -> Option<Self> {
        let packed = super::find(vmlinux, START, |rest| rest.starts_with(&[0x1f, 0x8b]))?;
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(packed).take(MOST + 1).read_to_end(&mut text).ok()?;
        Self::parse(&text)
    }

    /// Whether it can be that of a kernel of this release (`6.1.192-custom`).
    pub(super) fn is_of(&self, release: &str) -> bool {
        let plain = |text: &str| text.split(['-', '+']).next().unwrap_or_default().to_owned();
        let (ours, theirs) = (plain(&self.version), plain(release));
        // A distribution's release may say less than its source's version: `6.1.0-56-amd64` is 6.1.192 at Debian.
        let series = |text: &str| text.split('.').take(2).map(str::to_owned).collect::<Vec<_>>();
        ours == theirs || (theirs.ends_with(".0") && series(&ours) == series(&theirs))
    }

    /// `y`, `m`, or a value; nothing when it is not set.
    pub(super) fn get(&self, option: &str) -> Option<&str> {
        self.values.get(option).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 6.1.192 Kernel Configuration\n#\n\
                        CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"x\"\n";

    #[test]
    fn values_and_the_version_are_read() {
        let config = Config::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(
            ["A", "B", "C", "D"].map(|key| config.get(key)),
            [Some("y"), Some("m"), None, Some("\"x\"")]
        );
        for (release, same) in [
            ("6.1.192", true),
            ("6.1.192-custom", true),
            ("6.1.0-56-cloud-amd64", true),
            ("6.1.19", false),
            ("6.12.0-1-amd64", false),
        ] {
            assert_eq!(config.is_of(release), same, "{release}");
        }
        for none in ["", "CONFIG_A=y\n", "# Linux/arm64 6.1.192 Kernel Configuration\nCONFIG_A=y\n"] {
            assert_eq!(Config::parse(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn a_kernel_carries_its_own() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, TEXT.as_bytes()).unwrap();
        // The mark alone, as in the code that prints it, is none.
        let image =
            [b"..IKCFG_ST..IKCFG_ST".to_vec(), packed.finish().unwrap(), b"IKCFG_ED".to_vec()].concat();
        assert_eq!(Config::embedded(&image), Config::parse(TEXT.as_bytes()));
        assert_eq!(Config::embedded(&image[..image.len() / 2]), None);
    }
}
