//! Extended attributes, POSIX ACLs among them.

use bytes::Bytes;
use tarbox_store::InodeRow;
use tarbox_types::Ino;

use super::{Caller, Draft, Planned, is_dir};
use crate::{
    acl,
    effect::{Effect, Outcome, Record},
    error::FsError,
    tree::Tree,
    xattr::{Attributes, SetMode},
};

impl Tree {
    fn attributes(&self, ino: Ino) -> Planned<Attributes> {
        Ok(match self.xattrs(ino)? {
            Some(list) => Attributes::decode(list)?,
            None => Attributes::default(),
        })
    }

    /// getxattr(2).
    pub(crate) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Planned<Bytes> {
        // A file that never had any is the common case: no list is built for it.
        if self.xattrs(ino)?.is_none() {
            return Err(FsError::NoAttribute.into());
        }
        self.attributes(ino)?.get(name).map(Bytes::copy_from_slice).ok_or_else(|| FsError::NoAttribute.into())
    }

    /// listxattr(2): names, each ended by a NUL.
    pub(crate) fn list_xattrs(&self, ino: Ino) -> Planned<Bytes> {
        Ok(self.attributes(ino)?.list())
    }

    /// setxattr(2). An access ACL sets the permission bits, too.
    pub(crate) fn set_xattr(
        &self,
        caller: &Caller,
        ino: Ino,
        (name, value): (&[u8], &[u8]),
        mode: SetMode,
        kill_sgid: bool,
    ) -> Planned<Record> {
        let mut row = InodeRow { ctime: caller.now, ..self.node(ino)?.row.clone() };
        let mut list = self.attributes(ino)?;
        match name {
            acl::ACCESS => set_access_acl(&mut row, &mut list, value, kill_sgid)?,
            acl::DEFAULT if !is_dir(&row) => return Err(FsError::NotPermitted.into()),
            acl::DEFAULT => {
                acl::validate(value)?;
                list.set(name, value, mode)?;
            }
            _ => list.set(name, value, mode)?,
        }
        self.put_attributes(caller, row, &list)
    }

    /// removexattr(2).
    pub(crate) fn remove_xattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Planned<Record> {
        let row = InodeRow { ctime: caller.now, ..self.node(ino)?.row.clone() };
        let mut list = self.attributes(ino)?;
        if !list.remove(name) {
            return Err(FsError::NoAttribute.into());
        }
        self.put_attributes(caller, row, &list)
    }

    fn put_attributes(&self, caller: &Caller, row: InodeRow, list: &Attributes) -> Planned<Record> {
        let mut draft = Draft::new(self);
        let ino = row.ino;
        draft.put(row);
        draft.push(Effect::Xattrs { ino, value: list.encode() });
        Ok(draft.finish(caller, Outcome::Done))
    }
}

fn set_access_acl(row: &mut InodeRow, list: &mut Attributes, value: &[u8], kill_sgid: bool) -> Planned<()> {
    let (mode, is_minimal) = acl::mode_of(value)?;
    row.mode = row.mode & !0o777 | mode;
    if kill_sgid {
        row.mode &= !libc::S_ISGID;
    }
    if is_minimal {
        // Says no more than the permission bits do.
        list.remove(acl::ACCESS);
    } else {
        list.put(acl::ACCESS, Bytes::copy_from_slice(value));
    }
    Ok(())
}
