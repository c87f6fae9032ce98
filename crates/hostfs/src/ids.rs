//! Owners: who runs smolvm is the guest's root, and the other way round.

use rustix::io::Errno;

/// What the guest sees of files that belong to somebody else.
const NOBODY: u32 = 65534;

/// Who this process is.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    uid: u32,
    gid: u32,
}

/// Some way to write both ids.
type Pair = (u32, u32);

impl Ids {
    /// Those of this process.
    pub fn own() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// Whether files may be given to others: root here keeps the guest's numbers as they are.
    fn keeps(self) -> bool {
        self.uid == 0
    }

    /// A file's owner and group as the guest sees them.
    pub(crate) fn to_guest(self, (uid, gid): Pair) -> Pair {
        if self.keeps() {
            return (uid, gid);
        }
        let seen = |id, own| if id == own { 0 } else { NOBODY };
        (seen(uid, self.uid), seen(gid, self.gid))
    }

    /// The owner and group that a guest wants a file to have.
    ///
    /// # Errors
    /// EPERM: this user cannot give files away.
    pub(crate) fn to_host(
        self,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(Option<u32>, Option<u32>), Errno> {
        let one = |id: Option<u32>, own| match id {
            None => Ok(None),
            Some(id) if self.keeps() => Ok(Some(id)),
            Some(0) => Ok(Some(own)),
            Some(_) => Err(Errno::PERM),
        };
        Ok((one(uid, self.uid)?, one(gid, self.gid)?))
    }

    /// Whom to give a file that a process of the guest made, where that is not who made it here.
    pub(crate) fn maker(self, uid: u32, gid: u32) -> Option<Pair> {
        (self.keeps() && (uid, gid) != (self.uid, self.gid)).then_some((uid, gid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_here_is_root_there() {
        let user = Ids { uid: 1000, gid: 100 };
        assert_eq!(user.to_guest((1000, 100)), (0, 0));
        assert_eq!(user.to_guest((0, 1000)), (NOBODY, NOBODY));
        assert_eq!(user.to_host(Some(0), None), Ok((Some(1000), None)));
        assert_eq!(user.to_host(Some(0), Some(0)), Ok((Some(1000), Some(100))));
        assert_eq!(user.to_host(Some(33), None), Err(Errno::PERM));
        assert_eq!(user.maker(33, 33), None);
    }

    #[test]
    fn root_keeps_numbers() {
        let root = Ids { uid: 0, gid: 0 };
        assert_eq!(root.to_guest((1000, 33)), (1000, 33));
        assert_eq!(root.to_host(Some(33), Some(34)), Ok((Some(33), Some(34))));
        assert_eq!((root.maker(0, 0), root.maker(33, 0)), (None, Some((33, 0))));
    }
}
