//! What a test asks for and expects: the JSON between `%ifdef CONFIG` and `%endif`.
//!
//! Keys (FEX's Scripts/json_config_parse.py): `RegData` (register to value, or values of its 64-bit parts),
//! `MemoryRegions` (address to size), `MemoryData` (address to bytes), `HostFeatures`, `Mode`, `Env`. `Match` and
//! `Ignore` are about comparing two runs, which is not done here.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// A test's configuration.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Register, in capitals, to its 64-bit parts from the lowest.
    pub registers: BTreeMap<String, Vec<u64>>,
    /// Address and bytes of memory that is to be there.
    pub regions: Vec<(u64, u64)>,
    /// What is to lie in it.
    pub data: Vec<(u64, Vec<u8>)>,
    /// Features that the CPU must have, in capitals.
    pub features: Vec<String>,
    /// 32-bit code.
    pub is_32_bit: bool,
    /// Settings of FEX itself.
    pub settings: BTreeMap<String, String>,
}

impl Expected {
    /// Reads it from the source of a test.
    ///
    /// # Errors
    /// Where there is none, or it is not of the form above.
    pub fn parse(source: &str) -> Result<Expected> {
        let text = source.split("%ifdef CONFIG").nth(1).and_then(|rest| rest.split("%endif").next());
        let text = text.context("no `%ifdef CONFIG` … `%endif`")?;
        let all: Map<String, Value> =
            serde_json::from_str(text.trim()).context("its configuration is no JSON")?;
        let mut expected = Expected::default();
        for (key, value) in &all {
            match key.to_uppercase().as_str() {
                "REGDATA" => expected.registers = pairs(value, |k, v| Ok((k.to_uppercase(), parts(v)?)))?,
                "MEMORYREGIONS" => {
                    let regions = pairs(value, |k, v| Ok((number(k)?, number(text_of(v)?)?)))?;
                    expected.regions = regions.into_iter().collect();
                }
                "MEMORYDATA" => {
                    let data = pairs(value, |k, v| Ok((number(k)?, bytes(text_of(v)?)?)))?;
                    expected.data = data.into_iter().collect();
                }
                "HOSTFEATURES" => {
                    for feature in value.as_array().context("HostFeatures is no list")? {
                        expected.features.push(text_of(feature)?.to_uppercase());
                    }
                }
                "MODE" => expected.is_32_bit = text_of(value)?.eq_ignore_ascii_case("32BIT"),
                "ENV" => expected.settings = pairs(value, |k, v| Ok((k.to_owned(), text_of(v)?.to_owned())))?,
                // The last two: misspelt in some, and without a meaning for FEX.
                "MATCH" | "IGNORE" | "X86REDUCEDPRECISION" | "X87REDUCEDPRECISION" => {}
                _ => bail!("its configuration has the key {key:?}, which is not known here"),
            }
        }
        Ok(expected)
    }
}

fn pairs<K: Ord, V>(value: &Value, one: impl Fn(&str, &Value) -> Result<(K, V)>) -> Result<BTreeMap<K, V>> {
    let map = value.as_object().context("not pairs of key and value")?;
    map.iter().map(|(key, value)| one(key, value)).collect()
}

fn text_of(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no string"))
}

fn parts(value: &Value) -> Result<Vec<u64>> {
    match value {
        Value::Array(values) => values.iter().map(|value| number(text_of(value)?)).collect(),
        value => Ok(vec![number(text_of(value)?)?]),
    }
}

/// As Python's `int(text, 0)`, and negative numbers as two's complement.
fn number(text: &str) -> Result<u64> {
    let plain = text.trim().replace('_', "");
    let (negative, plain) = plain.strip_prefix('-').map_or((false, plain.as_str()), |rest| (true, rest));
    let lower = plain.to_lowercase();
    let value = match (lower.strip_prefix("0x"), lower.strip_prefix("0b")) {
        (Some(hex), _) => u64::from_str_radix(hex, 16),
        (_, Some(binary)) => u64::from_str_radix(binary, 2),
        _ => lower.parse(),
    };
    let value = value.with_context(|| format!("{text:?} is no number of 64 bits"))?;
    Ok(if negative { value.wrapping_neg() } else { value })
}

/// Bytes as `AA BB CC`, or one number, whose lowest byte comes first.
fn bytes(text: &str) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for word in text.split_whitespace() {
        let digits = word.trim_start_matches("0x");
        let wide = u128::from_str_radix(digits, 16).with_context(|| format!("{word:?} is no number"))?;
        all.extend(&wide.to_le_bytes()[..digits.len().div_ceil(2).min(16)]);
    }
    Ok(all)
}
