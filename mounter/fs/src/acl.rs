//! POSIX access control lists as Linux keeps them in `system.posix_acl_access` and `system.posix_acl_default`.
//!
//! Permission checks are the kernel's; here is what a file system has to do itself: check what is set, keep the mode and the
//! access list in step, and hand a directory's default list on to what is made in it.
//! Source: acl(5); Linux `fs/posix_acl.c`, `include/uapi/linux/posix_acl_xattr.h`.

use bytes::Bytes;
use tarbox_types::ErrorKind;

/// Name of the attribute with the access list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the attribute with a directory's default list.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
/// The id of entries that need none.
const NO_ID: u32 = u32::MAX;

/// Why bytes are not an access control list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// The version is another one.
    #[error("version {0} of access control lists is not supported")]
    Version(u32),
    /// The bytes are no list.
    #[error("the access control list is malformed")]
    Malformed,
    /// The entries do not make a valid list (acl(5), "VALID ACLs").
    #[error("the entries of the access control list do not fit together")]
    Invalid,
}

impl AclError {
    /// Its kind (Linux answers `EOPNOTSUPP` and `EINVAL`).
    #[must_use]
    pub fn kind(self) -> ErrorKind {
        match self {
            Self::Version(_) => ErrorKind::Unsupported,
            Self::Malformed | Self::Invalid => ErrorKind::InvalidArgument,
        }
    }
}

/// Whom an entry is about. The order is that of a valid list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The owner.
    Owner,
    /// A user.
    User(u32),
    /// The owning group.
    OwningGroup,
    /// A group.
    Group(u32),
    /// Bounds what users, groups and the owning group get.
    Mask,
    /// Everybody else.
    Other,
}

impl Who {
    fn tag(self) -> (u16, u32) {
        match self {
            Self::Owner => (0x01, NO_ID),
            Self::User(uid) => (0x02, uid),
            Self::OwningGroup => (0x04, NO_ID),
            Self::Group(gid) => (0x08, gid),
            Self::Mask => (0x10, NO_ID),
            Self::Other => (0x20, NO_ID),
        }
    }

    fn from_tag(tag: u16, id: u32) -> Option<Self> {
        Some(match tag {
            0x01 => Self::Owner,
            // (uid_t) -1 means nobody.
            0x02 if id != NO_ID => Self::User(id),
            0x04 => Self::OwningGroup,
            0x08 if id != NO_ID => Self::Group(id),
            0x10 => Self::Mask,
            0x20 => Self::Other,
            _ => return None,
        })
    }

    /// Place of its kind in a list.
    fn rank(self) -> u16 {
        self.tag().0
    }
}

/// A valid access control list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Whom, and what: bits `rwx` = 4, 2, 1.
    entries: Vec<(Who, u32)>,
}

/// What a new file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its mode.
    pub mode: u32,
    /// Its access list, where the mode does not say it all.
    pub access: Option<Acl>,
    /// Its default list, if it is a directory.
    pub default: Option<Acl>,
}

impl Acl {
    /// A list of these entries.
    ///
    /// # Errors
    /// [`AclError::Invalid`] if they are not a valid list in its order.
    pub fn new(entries: Vec<(Who, u32)>) -> Result<Self, AclError> {
        let count = |who: Who| entries.iter().filter(|(entry, _)| entry.rank() == who.rank()).count();
        let required = [Who::Owner, Who::OwningGroup, Who::Other];
        let needs_mask = entries.iter().any(|(who, _)| matches!(who, Who::User(_) | Who::Group(_)));
        let valid = entries.iter().all(|(_, perm)| perm & !7 == 0)
            && entries.is_sorted_by_key(|(who, _)| who.rank())
            && required.into_iter().all(|who| count(who) == 1)
            && (usize::from(needs_mask)..=1).contains(&count(Who::Mask));
        if valid { Ok(Self { entries }) } else { Err(AclError::Invalid) }
    }

    /// Reads the attribute's value. A list without entries is `None`: it takes the attribute away.
    ///
    /// # Errors
    /// What Linux refuses.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, AclError> {
        let (version, entries) = value.split_first_chunk::<4>().ok_or(AclError::Malformed)?;
        match u32::from_le_bytes(*version) {
            VERSION => {}
            other => return Err(AclError::Version(other)),
        }
        let (chunks, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(AclError::Malformed);
        }
        if chunks.is_empty() {
            return Ok(None);
        }
        let entries = chunks.iter().map(|&[t0, t1, p0, p1, id @ ..]| {
            let who = Who::from_tag(u16::from_le_bytes([t0, t1]), u32::from_le_bytes(id));
            Ok((who.ok_or(AclError::Invalid)?, u32::from(u16::from_le_bytes([p0, p1]))))
        });
        Self::new(entries.collect::<Result<_, _>>()?).map(Some)
    }

    /// The attribute's value.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = VERSION.to_le_bytes().to_vec();
        for &(who, perm) in &self.entries {
            let (tag, id) = who.tag();
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&(perm as u16).to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.into()
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[(Who, u32)] {
        &self.entries
    }

    /// The nine permission bits of the mode that go with it, and whether they say as much as the list
    /// (`posix_acl_equiv_mode`).
    #[must_use]
    pub fn equivalent_mode(&self) -> (u32, bool) {
        let is_minimal = self.entries.len() == 3;
        let group = self.group_class();
        let bits = self.entries.iter().map(|&(who, perm)| match who {
            Who::Owner => perm << 6,
            Who::Other => perm,
            _ if who == group => perm << 3,
            _ => 0,
        });
        (bits.sum(), is_minimal)
    }

    /// What setting it as access list makes of a mode, and what is left to be stored: nothing where the mode says it all.
    #[must_use]
    pub fn set_as_access(self, mode: u32) -> (u32, Option<Self>) {
        let (bits, is_equivalent) = self.equivalent_mode();
        (mode & !0o777 | bits, (!is_equivalent).then_some(self))
    }

    /// The access list after `chmod` to `mode`: the mode's group bits go to the mask, where there is one
    /// (`posix_acl_chmod`).
    #[must_use]
    pub fn chmod(mut self, mode: u32) -> Self {
        let group = self.group_class();
        for (who, perm) in &mut self.entries {
            match *who {
                Who::Owner => *perm = mode >> 6 & 7,
                Who::Other => *perm = mode & 7,
                who if who == group => *perm = mode >> 3 & 7,
                _ => {}
            }
        }
        self
    }

    /// Bounds the list and the mode by each other (`posix_acl_create_masq`).
    fn bound(mut self, mode: u32) -> (u32, Self) {
        let group = self.group_class();
        for (who, perm) in &mut self.entries {
            match *who {
                Who::Owner => *perm &= mode >> 6,
                Who::Other => *perm &= mode,
                who if who == group => *perm &= mode >> 3,
                _ => {}
            }
        }
        let (bits, _) = self.equivalent_mode();
        (mode & !0o777 | bits, self)
    }

    /// The entry that the mode's group bits stand for.
    fn group_class(&self) -> Who {
        let has_mask = self.entries.iter().any(|&(who, _)| who == Who::Mask);
        if has_mask { Who::Mask } else { Who::OwningGroup }
    }
}

/// What a file made with `mode` (with its type) begins with, in a directory with that default list
/// (`posix_acl_create`). The umask counts only where there is no default list.
#[must_use]
pub fn inherit(parent_default: Option<&Acl>, mode: u32, umask: u32) -> Inherited {
    let kind = mode & libc::S_IFMT;
    match parent_default {
        _ if kind == libc::S_IFLNK => Inherited { mode, access: None, default: None },
        None => Inherited { mode: mode & !(umask & 0o777), access: None, default: None },
        Some(acl) => {
            let (mode, access) = acl.clone().bound(mode);
            let (_, is_equivalent) = access.equivalent_mode();
            let default = (kind == libc::S_IFDIR).then(|| acl.clone());
            Inherited { mode, access: (!is_equivalent).then_some(access), default }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Who::*, *};

    const FILE: u32 = libc::S_IFREG;
    const DIR: u32 = libc::S_IFDIR;

    fn acl(entries: &[(Who, u32)]) -> Acl {
        Acl::new(entries.to_vec()).expect("valid")
    }

    /// The example of acl(5)'s mask: user joe rw, mask r.
    fn extended() -> Acl {
        acl(&[(Owner, 6), (User(1000), 6), (OwningGroup, 4), (Mask, 4), (Other, 0)])
    }

    #[test]
    fn the_attribute_has_the_kernels_layout() {
        // As `setfacl -m u:1000:rw,m:r` on a file of mode 0640 leaves it (getfattr -e hex).
        let value =
            "0200000001000600ffffffff02000600e803000004000400ffffffff10000400ffffffff20000000ffffffff";
        let value =
            (0..value.len()).step_by(2).map(|at| u8::from_str_radix(&value[at..at + 2], 16).expect("hex"));
        let value = value.collect::<Vec<_>>();
        assert_eq!(extended().to_bytes(), value);
        assert_eq!(Acl::parse(&value), Ok(Some(extended())));
    }

    #[test]
    fn a_list_without_entries_takes_the_attribute_away() {
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert_eq!(Acl::parse(&[]), Err(AclError::Malformed));
        assert_eq!(Acl::parse(&[2, 0, 0]), Err(AclError::Malformed));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 1]), Err(AclError::Malformed));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(AclError::Version(1)));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 3, 0, 7, 0, 0, 0, 0, 0]), Err(AclError::Invalid));
    }

    #[test]
    fn only_valid_combinations_are_lists() {
        let minimal = [(Owner, 7), (OwningGroup, 5), (Other, 5)];
        assert!(Acl::new(minimal.to_vec()).is_ok());
        let masked = [(Owner, 7), (OwningGroup, 5), (Mask, 1), (Other, 5)];
        assert!(Acl::new(masked.to_vec()).is_ok(), "a mask is allowed without users or groups");
        for (why, entries) in [
            ("a user needs a mask", vec![(Owner, 7), (User(1), 7), (OwningGroup, 5), (Other, 5)]),
            ("a group needs a mask", vec![(Owner, 7), (OwningGroup, 5), (Group(1), 7), (Other, 5)]),
            ("no owner", vec![(OwningGroup, 5), (Other, 5)]),
            ("no owning group", vec![(Owner, 5), (Other, 5)]),
            ("no other", vec![(Owner, 5), (OwningGroup, 5)]),
            ("two owners", vec![(Owner, 7), (Owner, 7), (OwningGroup, 5), (Other, 5)]),
            ("two masks", vec![(Owner, 7), (OwningGroup, 5), (Mask, 5), (Mask, 5), (Other, 5)]),
            ("out of order", vec![(OwningGroup, 5), (Owner, 7), (Other, 5)]),
            ("no such permission", vec![(Owner, 8), (OwningGroup, 5), (Other, 5)]),
        ] {
            assert_eq!(Acl::new(entries), Err(AclError::Invalid), "{why}");
        }
    }

    #[test]
    fn a_minimal_list_is_nothing_but_a_mode() {
        let minimal = acl(&[(Owner, 6), (OwningGroup, 4), (Other, 0)]);
        assert_eq!(minimal.set_as_access(FILE | 0o4777), (FILE | 0o4640, None));
    }

    #[test]
    fn the_group_bits_of_the_mode_are_the_mask() {
        let list = acl(&[(Owner, 7), (User(1), 7), (OwningGroup, 5), (Mask, 6), (Other, 1)]);
        assert_eq!(list.clone().set_as_access(FILE), (FILE | 0o761, Some(list)));
    }

    #[test]
    fn chmod_changes_the_mask_or_else_the_owning_group() {
        let changed = acl(&[(Owner, 7), (User(1000), 6), (OwningGroup, 4), (Mask, 2), (Other, 1)]);
        assert_eq!(extended().chmod(FILE | 0o721), changed);
        let minimal = acl(&[(Owner, 6), (OwningGroup, 4), (Other, 0)]);
        assert_eq!(minimal.chmod(0o721), acl(&[(Owner, 7), (OwningGroup, 2), (Other, 1)]));
    }

    #[test]
    fn without_a_default_list_the_umask_counts() {
        let plain = |mode| Inherited { mode, access: None, default: None };
        assert_eq!(inherit(None, FILE | 0o6666, 0o027), plain(FILE | 0o6640));
        assert_eq!(inherit(None, libc::S_IFLNK | 0o777, 0o077), plain(libc::S_IFLNK | 0o777));
    }

    #[test]
    fn with_a_default_list_the_umask_does_not_count() {
        // acl(5), "OBJECT CREATION AND DEFAULT ACLs": what the mode lacks is taken from the list as well.
        let default = acl(&[(Owner, 7), (User(1000), 7), (OwningGroup, 5), (Mask, 7), (Other, 5)]);
        let file = inherit(Some(&default), FILE | 0o640, 0o777);
        let access = acl(&[(Owner, 6), (User(1000), 7), (OwningGroup, 5), (Mask, 4), (Other, 0)]);
        assert_eq!(file, Inherited { mode: FILE | 0o640, access: Some(access), default: None });

        let dir = inherit(Some(&default), DIR | 0o777, 0o777);
        let access = acl(&[(Owner, 7), (User(1000), 7), (OwningGroup, 5), (Mask, 7), (Other, 5)]);
        assert_eq!(dir, Inherited { mode: DIR | 0o775, access: Some(access), default: Some(default) });
    }

    #[test]
    fn a_minimal_default_list_bounds_the_mode_and_leaves_no_access_list() {
        let default = acl(&[(Owner, 7), (OwningGroup, 0), (Other, 0)]);
        let file = inherit(Some(&default), FILE | 0o1666, 0o777);
        assert_eq!(file, Inherited { mode: FILE | 0o1600, access: None, default: None });
        let dir = inherit(Some(&default), DIR | 0o777, 0);
        assert_eq!(dir, Inherited { mode: DIR | 0o700, access: None, default: Some(default) });
        assert_eq!(inherit(Some(&extended()), libc::S_IFLNK | 0o777, 0).access, None);
    }
}
