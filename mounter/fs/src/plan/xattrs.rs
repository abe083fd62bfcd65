//! Extended attributes, POSIX ACLs among them.

use bytes::Bytes;
use tarbox_store::InodeRow;
use tarbox_types::Ino;

use super::{Caller, Draft, Planned, is_dir};
use crate::{
    acl::{self, Acl},
    effect::{Effect, Outcome, Record},
    error::FsError,
    tree::Tree,
    xattr::{SetFlags, Xattrs},
};

/// Name spaces of attributes, each followed by a name of at least one byte.
const NAME_SPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];

/// Names of this space are root's alone: others neither read the values nor see the names.
const TRUSTED: &[u8] = b"trusted.";

/// A name that can be kept: what other name spaces mean, nobody here knows.
fn check_name(name: &[u8]) -> Planned<()> {
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    match NAME_SPACES.iter().find(|space| name.starts_with(space)) {
        Some(space) if name.len() > space.len() => Ok(()),
        Some(_) => Err(FsError::Invalid.into()),
        None => Err(FsError::NotSupported.into()),
    }
}

impl Tree {
    fn attributes(&self, ino: Ino) -> Planned<Xattrs> {
        Ok(Xattrs::decode(self.xattrs(ino)?)?)
    }

    /// getxattr(2).
    pub(crate) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Planned<Bytes> {
        check_name(name)?;
        // A file that never had any is the common case: no list is built for it.
        if self.xattrs(ino)?.is_none() {
            return Err(FsError::NoAttribute.into());
        }
        self.attributes(ino)?.get(name).cloned().ok_or_else(|| FsError::NoAttribute.into())
    }

    /// listxattr(2): names, each ended by a NUL. The kernel asks whoever the caller is, and passes on all it is told: who
    /// has CAP_SYS_ADMIN is not said here, so root is taken to have it.
    pub(crate) fn list_xattrs(&self, caller_uid: u32, ino: Ino) -> Planned<Bytes> {
        let shown = |name: &[u8]| caller_uid == 0 || !name.starts_with(TRUSTED);
        Ok(self.attributes(ino)?.list(shown))
    }

    /// setxattr(2). An access ACL sets the permission bits, too.
    pub(crate) fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        (name, value): (&[u8], &[u8]),
        flags: SetFlags,
        kill_sgid: bool,
    ) -> Planned<Record> {
        check_name(name)?;
        let mut row = InodeRow { ctime: caller.now, ..self.node(ino)?.row.clone() };
        let mut list = self.attributes(ino)?;
        match name {
            acl::ACCESS => set_access_acl(&mut row, &mut list, value, kill_sgid)?,
            acl::DEFAULT if !is_dir(&row) => return Err(FsError::NotPermitted.into()),
            acl::DEFAULT => match Acl::parse(value)? {
                Some(acl) => list.set(name, &acl.to_bytes(), flags)?,
                None => drop(list.remove(name)),
            },
            _ => list.set(name, value, flags)?,
        }
        self.put_attributes(caller, row, &list)
    }

    /// removexattr(2).
    pub(crate) fn remove_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Planned<Record> {
        check_name(name)?;
        let row = InodeRow { ctime: caller.now, ..self.node(ino)?.row.clone() };
        let mut list = self.attributes(ino)?;
        list.remove(name)?;
        self.put_attributes(caller, row, &list)
    }

    fn put_attributes(&self, caller: &Caller, row: InodeRow, list: &Xattrs) -> Planned<Record> {
        let mut draft = Draft::new(self);
        let ino = row.ino;
        draft.put(row);
        draft.push(Effect::Xattrs { ino, value: list.encode() });
        Ok(draft.finish(caller, Outcome::Done))
    }
}

fn set_access_acl(row: &mut InodeRow, list: &mut Xattrs, value: &[u8], kill_sgid: bool) -> Planned<()> {
    let stored = match Acl::parse(value)? {
        Some(acl) => {
            let (mode, stored) = acl.set_as_access(row.mode);
            row.mode = mode;
            stored
        }
        None => None,
    };
    if kill_sgid {
        row.mode &= !libc::S_ISGID;
    }
    match stored {
        Some(acl) => list.set(acl::ACCESS, &acl.to_bytes(), SetFlags::default())?,
        // Says no more than the permission bits do.
        None => drop(list.remove(acl::ACCESS)),
    }
    Ok(())
}
