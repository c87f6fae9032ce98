//! The configuration fragment: what it says, and whether Kconfig did it.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// The lines that mean something (no comments), for the cache key: a reworded reason builds nothing.
pub fn meaning(fragment: &str) -> String {
    let lines: Vec<_> = fragment.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_")).collect();
    lines.join("\n")
}

/// Fails, naming them all, if options of the fragment do not hold in the `.config` that came of it.
///
/// Kconfig drops silently what it does not know or whose dependencies are missing. `=n` is met by the
/// option's absence: an option that went away is off too.
pub fn check(fragment: &str, dot_config: &str) -> Result<()> {
    let has: BTreeMap<_, _> = dot_config.lines().filter_map(|line| line.trim().split_once('=')).collect();
    let mut problems = Vec::new();
    for line in meaning(fragment).lines() {
        let Some((option, wanted)) = line.split_once('=') else {
            problems.push(format!("{line}: write OPTION=value"));
            continue;
        };
        let is = has.get(option).copied().unwrap_or("n");
        if is != wanted {
            problems.push(format!("{option} should be {wanted} and is {is}"));
        }
    }
    if !problems.is_empty() {
        bail!("guest/kernel/config does not hold in this source's Kconfig:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_do_not_change_the_meaning() {
        assert_eq!(meaning("# why\nCONFIG_A=y\n\n# more\nCONFIG_B=n\n"), "CONFIG_A=y\nCONFIG_B=n");
    }

    #[test]
    fn what_kconfig_dropped_is_named() {
        let dot_config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=16\n";
        check("CONFIG_A=y\nCONFIG_B=n\nCONFIG_GONE=n\nCONFIG_N=16\n", dot_config).unwrap();
        let error = check("CONFIG_B=y\nCONFIG_N=8\nCONFIG_A=n\n", dot_config).unwrap_err().to_string();
        for part in
            ["CONFIG_B should be y and is n", "CONFIG_N should be 8 and is 16", "CONFIG_A should be n"]
        {
            assert!(error.contains(part), "{part} not in {error}");
        }
    }
}
