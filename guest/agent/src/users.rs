//! Users and groups from the guest's own /etc/passwd and /etc/group; there is no NSS in a static program.

use crate::world::World;
use agent_protocol::{ErrorKind, Failure};

/// The largest passwd or group file that is read, in bytes.
const FILE_LIMIT: usize = 4 << 20;
/// The kernel's NGROUPS_MAX.
const GROUPS_LIMIT: usize = 65536;

/// Who a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Main group id.
    pub gid: u32,
    /// Additional groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login name, if the user has one.
    pub name: Option<String>,
}

/// One line of /etc/passwd.
#[derive(Debug, Clone)]
struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_line(line: &str) -> Option<Passwd<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
    Some(Passwd { name, uid, gid, home })
}

/// One line of /etc/group: name, id, members.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or("")))
}

/// Finds who `spec` means: `name`, `uid`, either with `:group` or `:gid`; root when `None`.
///
/// A number needs no entry. A name does, and brings its additional groups.
///
/// # Errors
/// `NoSuchUser`, naming the file in which the name is missing.
pub fn lookup(world: &World, spec: Option<&str>) -> Result<Identity, Failure> {
    let passwd = world.read_small("etc/passwd", FILE_LIMIT);
    let group = world.read_small("etc/group", FILE_LIMIT);
    identity(&String::from_utf8_lossy(&passwd), &String::from_utf8_lossy(&group), spec)
}

/// [`lookup`] in the text of the two files.
///
/// # Errors
/// As [`lookup`].
pub fn identity(passwd: &str, group: &str, spec: Option<&str>) -> Result<Identity, Failure> {
    let spec = spec.filter(|spec| !spec.is_empty()).unwrap_or("0");
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let mut entries = passwd.lines().filter_map(passwd_line);
    // A name made of digits wins over the number, as in POSIX chown.
    let named = entries.clone().find(|entry| entry.name == user);
    let entry = named.or_else(|| {
        let uid: u32 = user.parse().ok()?;
        entries.find(|entry| entry.uid == uid)
    });
    let mut who = match (&entry, user.parse::<u32>()) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: entry.home.to_string(),
            name: Some(entry.name.to_string()),
        },
        (None, Ok(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: "/".to_string(), name: None },
        (None, Err(_)) => {
            let text = format!("no user '{user}' in the guest's /etc/passwd");
            return Err(Failure::new(ErrorKind::NoSuchUser, text));
        }
    };
    match wanted_group {
        Some(wanted) => who.gid = find_group(group, wanted)?,
        None => who.groups = memberships(group, who.name.as_deref(), who.gid),
    }
    Ok(who)
}

fn find_group(group: &str, wanted: &str) -> Result<u32, Failure> {
    let named = group.lines().filter_map(group_line).find(|(name, ..)| *name == wanted);
    named.map(|(_, gid, _)| gid).or_else(|| wanted.parse().ok()).ok_or_else(|| {
        Failure::new(ErrorKind::NoSuchUser, format!("no group '{wanted}' in the guest's /etc/group"))
    })
}

/// The groups that list `name`, besides the main one.
fn memberships(group: &str, name: Option<&str>, main: u32) -> Vec<u32> {
    let Some(name) = name else { return Vec::new() };
    let lists = |members: &str| members.split(',').any(|member| member.trim() == name);
    let found =
        group.lines().filter_map(group_line).filter(|(_, gid, members)| *gid != main && lists(members));
    let mut groups: Vec<u32> = found.map(|(_, gid, _)| gid).take(GROUPS_LIMIT).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # comment\n\nbroken:x:notanumber:0::/:\n\
        app:x:1000:1001:App:/srv/app:/bin/sh\n\
        1234:x:77:78::/digits:\nnohome:x:5:5::\n";
    const GROUP: &str =
        "root:x:0:\napp:x:1001:\nadm:x:4:root,app\ndisk:x:6:other\nvideo:x:44:app\ndup:x:4:app\n";

    fn find(spec: &str) -> Identity {
        identity(PASSWD, GROUP, Some(spec)).expect(spec)
    }

    #[test]
    fn nobody_named_is_root() {
        let root = identity(PASSWD, GROUP, None).expect("root");
        assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
        assert_eq!(root.groups, [4]);
    }

    #[test]
    fn a_name_brings_its_groups() {
        let app = find("app");
        assert_eq!((app.uid, app.gid, app.home.as_str()), (1000, 1001, "/srv/app"));
        assert_eq!(app.groups, [4, 44]);
        assert_eq!(app.name.as_deref(), Some("app"));
    }

    #[test]
    fn a_group_named_replaces_all_others() {
        let app = find("app:video");
        assert_eq!((app.uid, app.gid), (1000, 44));
        assert!(app.groups.is_empty());
        assert_eq!(find("app:99").gid, 99);
        assert_eq!(find(":video").uid, 0);
    }

    #[test]
    fn numbers_need_no_entry() {
        let stranger = find("4321");
        assert_eq!((stranger.uid, stranger.gid, stranger.home.as_str()), (4321, 0, "/"));
        assert_eq!(find("1000").home, "/srv/app");
        assert_eq!(find("4321:4322").gid, 4322);
    }

    #[test]
    fn a_name_of_digits_wins_over_the_number() {
        assert_eq!(find("1234").uid, 77);
    }

    #[test]
    fn missing_fields_have_defaults_and_missing_names_an_error() {
        assert_eq!(find("nohome").home, "/");
        for (spec, file) in [("ghost", "/etc/passwd"), ("broken", "/etc/passwd"), ("app:ghost", "/etc/group")]
        {
            let failure = identity(PASSWD, GROUP, Some(spec)).expect_err(spec);
            assert_eq!(failure.kind, ErrorKind::NoSuchUser);
            assert!(failure.text.contains(file), "{failure}");
        }
    }
}
