//! The environment of a process: what was asked for, over the defaults that docker's users know.

use crate::users::Identity;
use std::ffi::CString;

/// The PATH of a process that was given none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment as strings for exec; entries with a NUL or an empty name are left out.
pub fn environment(asked: &[(String, String)], who: &Identity, tty: bool) -> Vec<CString> {
    let mut pairs: Vec<(&str, &str)> = Vec::with_capacity(asked.len() + 5);
    for (name, value) in asked {
        // The last one given wins, and each name appears once.
        pairs.retain(|(known, _)| known != name);
        pairs.push((name, value));
    }
    let host = rustix::system::uname();
    let host = host.nodename().to_str().unwrap_or("");
    let user = who.name.as_deref().unwrap_or("");
    let defaults =
        [("PATH", DEFAULT_PATH), ("HOSTNAME", host), ("HOME", &who.home), ("USER", user), ("TERM", "xterm")];
    for (name, value) in defaults {
        let wanted = !value.is_empty() && (name != "TERM" || tty);
        if wanted && !pairs.iter().any(|(known, _)| *known == name) {
            pairs.push((name, value));
        }
    }
    let strings = pairs.iter().filter(|(name, _)| !name.is_empty() && !name.contains('='));
    strings.filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect()
}

/// The value of PATH in an environment made by [`environment`].
pub fn search_path(env: &[CString]) -> &str {
    let path = env.iter().find_map(|entry| entry.to_str().ok()?.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Identity {
        Identity { uid: 0, gid: 0, groups: vec![], home: "/root".into(), name: Some("root".into()) }
    }

    fn text(asked: &[(&str, &str)], tty: bool) -> Vec<String> {
        let asked: Vec<_> = asked.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
        environment(&asked, &root(), tty).into_iter().map(|s| s.into_string().expect("utf-8")).collect()
    }

    #[test]
    fn defaults_are_given_where_nothing_was_asked() {
        let env = text(&[("A", "1")], false);
        assert_eq!(env[0], "A=1");
        assert!(env.contains(&format!("PATH={DEFAULT_PATH}")));
        assert!(env.contains(&"HOME=/root".to_string()));
        assert!(!env.iter().any(|entry| entry.starts_with("TERM=")));
        assert!(text(&[], true).contains(&"TERM=xterm".to_string()));
    }

    #[test]
    fn what_was_asked_wins_and_the_last_of_a_name_wins() {
        let env = text(&[("HOME", "/x"), ("A", "1"), ("A", "2"), ("TERM", "vt100")], true);
        assert_eq!(env.iter().filter(|entry| entry.starts_with("HOME=")).count(), 1);
        assert!(env.contains(&"HOME=/x".to_string()));
        assert!(env.contains(&"A=2".to_string()) && !env.contains(&"A=1".to_string()));
        assert!(env.contains(&"TERM=vt100".to_string()));
    }

    #[test]
    fn what_no_environment_can_hold_is_left_out() {
        let env = text(&[("", "x"), ("A=B", "x"), ("N", "a\0b")], false);
        assert!(
            !env.iter()
                .any(|entry| entry.starts_with("=") || entry.starts_with("A=B") || entry.starts_with("N="))
        );
    }
}
