//! Sizes and durations as people write them. A bare number is refused with the right spelling.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written `512MiB`, `2GiB`, `64KiB`; `M` and `G` mean MiB and GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A time span, written `500ms`, `30s`, `2m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub std::time::Duration);

const SIZE_UNITS: [(&str, u32); 9] = [
    ("KiB", 10),
    ("MiB", 20),
    ("GiB", 30),
    ("TiB", 40),
    ("K", 10),
    ("M", 20),
    ("G", 30),
    ("T", 40),
    ("B", 0),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.parse::<u64>().is_ok() {
            return Err(format!("`{text}` has no unit; write `{text}MiB` or `{text}GiB`"));
        }
        SIZE_UNITS
            .iter()
            .find_map(|(unit, shift)| {
                let n: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
                n.checked_mul(1 << shift).map(Size)
            })
            .ok_or_else(|| format!("`{text}` is not a size; write it like `512MiB` or `2GiB`"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let parsed = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]
            .iter()
            .find_map(|(unit, ms)| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(*ms));
        match parsed {
            Some(ms) => Ok(Duration(std::time::Duration::from_millis(ms))),
            None if text.parse::<u64>().is_ok() => Err(format!("`{text}` has no unit; write `{text}s`")),
            None => Err(format!("`{text}` is not a time span; write it like `30s`, `500ms` or `2m`")),
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1000) { write!(f, "{}s", ms / 1000) } else { write!(f, "{ms}ms") }
    }
}

macro_rules! as_text {
    ($t:ident, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $t;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a quoted quantity with its unit")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$t, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, n: i64) -> Result<$t, E> {
                        self.visit_str(&n.to_string())
                    }
                }
                d.deserialize_any(Text)
            }
        }
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl JsonSchema for $t {
            fn schema_name() -> Cow<'static, str> {
                stringify!($t).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}
as_text!(Size, "^[0-9]+ *(B|[KMGT](iB)?)$");
as_text!(Duration, "^[0-9]+(ms|s|m|h|d)$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!("512MiB".parse(), Ok(Size(512 << 20)));
        assert_eq!("2G".parse(), Ok(Size(2 << 30)));
        assert!("512".parse::<Size>().unwrap_err().contains("512MiB"));
        assert!("99999999999T".parse::<Size>().is_err());
        assert_eq!(Size(1536 << 20).to_string(), "1536MiB");
    }

    #[test]
    fn durations() {
        assert_eq!("120s".parse(), Ok(Duration(std::time::Duration::from_secs(120))));
        assert_eq!("2m".parse::<Duration>().unwrap().to_string(), "120s");
        assert!("5".parse::<Duration>().unwrap_err().contains("5s"));
    }
}
