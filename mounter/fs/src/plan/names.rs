//! Operations on names: create, mknod, mkdir, symlink, link, unlink, rmdir, rename.

use bytes::Bytes;
use tarbox_store::{InodeRow, Time};
use tarbox_types::Ino;

use super::{Caller, Draft, FIRST_COOKIE, LINK_MAX, Planned, TARGET_MAX, check_name, entry, is_dir, touched};
use crate::{
    acl::{self, Acl},
    effect::{Effect, Outcome, Record},
    error::FsError,
    tree::{Need, Tree},
    xattr::{SetFlags, Xattrs},
};

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewInode<'a> {
    /// Type and permission bits.
    pub mode: u32,
    /// Where it is still to be applied.
    pub umask: Option<u32>,
    pub rdev: u32,
    /// Of a symbolic link.
    pub target: &'a [u8],
}

/// What kind of rename is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rename {
    Replace,
    NoReplace,
    Exchange,
}

impl Tree {
    /// mkdir, mknod, create, symlink: a new inode under a new name.
    pub(crate) fn make(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new: &NewInode<'_>,
    ) -> Planned<Record> {
        check_name(name)?;
        if new.target.len() > TARGET_MAX {
            return Err(FsError::NameTooLong.into());
        }
        let directory = self.directory(parent)?;
        if self.name(parent, name)?.is_some() {
            return Err(FsError::Exists.into());
        }
        let mut draft = Draft::new(self);
        let row = self.new_row(caller, directory, new, &mut draft)?;
        let mut directory = touched(directory, caller.now);
        if is_dir(&row) {
            if directory.nlink >= LINK_MAX {
                return Err(FsError::TooManyLinks.into());
            }
            directory.nlink += 1;
        }
        let ino = row.ino;
        // The first name's position is the inode's own number: unique in the tenant, so in the directory.
        draft.push(entry(parent, name, &row, ino.max(FIRST_COOKIE)));
        draft.put(directory);
        Ok(draft.finish(caller, Outcome::Inode(ino)))
    }

    /// O_TMPFILE: a new file without a name.
    pub(crate) fn make_nameless(&self, caller: &Caller, parent: Ino, new: &NewInode<'_>) -> Planned<Record> {
        let directory = self.directory(parent)?;
        let mut draft = Draft::new(self);
        let row = self.new_row(caller, directory, new, &mut draft)?;
        let ino = row.ino;
        if let Some(Effect::Inode(row)) = draft.effects.iter_mut().find(|e| matches!(e, Effect::Inode(_))) {
            row.nlink = 0;
        }
        Ok(draft.finish(caller, Outcome::Inode(ino)))
    }

    /// The row of a new inode, with its ACLs; both are put into the draft.
    fn new_row(
        &self,
        caller: &Caller,
        parent: &InodeRow,
        new: &NewInode<'_>,
        draft: &mut Draft<'_>,
    ) -> Planned<InodeRow> {
        draft.count_inode()?;
        let ino = draft.next_number();
        let kind = new.mode & libc::S_IFMT;
        let inherited =
            acl::inherit(self.default_acl(parent.ino)?.as_ref(), new.mode, new.umask.unwrap_or(0));
        let mut mode = inherited.mode;
        let sets_group = parent.mode & libc::S_ISGID != 0;
        if sets_group && kind == libc::S_IFDIR {
            mode |= libc::S_ISGID;
        }
        let row = InodeRow {
            ino,
            mode,
            uid: caller.uid,
            gid: if sets_group { parent.gid } else { caller.gid },
            rdev: new.rdev,
            nlink: if kind == libc::S_IFDIR { 2 } else { 1 },
            size: match kind {
                libc::S_IFDIR => 4096,
                libc::S_IFLNK => new.target.len() as u64,
                _ => 0,
            },
            atime: caller.now,
            mtime: caller.now,
            ctime: caller.now,
            dir_parent: if kind == libc::S_IFDIR { parent.ino } else { 0 },
            did: if kind == libc::S_IFREG { ino } else { 0 },
            cut: u64::MAX >> 1,
            charge: 0,
            prealloc: Vec::new(),
            target: Bytes::copy_from_slice(new.target),
        };
        draft.put(row.clone());
        if inherited.access.is_some() || inherited.default.is_some() {
            let mut list = Xattrs::default();
            for (name, value) in [(acl::ACCESS, inherited.access), (acl::DEFAULT, inherited.default)] {
                if let Some(value) = value {
                    list.set(name, &value.to_bytes(), SetFlags::default())?;
                }
            }
            draft.push(Effect::Xattrs { ino, value: list.encode() });
        }
        Ok(row)
    }

    /// The default ACL of a directory.
    fn default_acl(&self, ino: Ino) -> Planned<Option<Acl>> {
        let Some(list) = self.xattrs(ino)? else { return Ok(None) };
        match Xattrs::decode(Some(list))?.get(acl::DEFAULT) {
            Some(value) => Ok(Acl::parse(value)?),
            None => Ok(None),
        }
    }

    /// One more name for an inode.
    pub(crate) fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Planned<Record> {
        check_name(name)?;
        let row = &self.node(ino)?.row;
        let directory = self.directory(parent)?;
        if is_dir(row) {
            return Err(FsError::NotPermitted.into());
        }
        if self.name(parent, name)?.is_some() {
            return Err(FsError::Exists.into());
        }
        if row.nlink >= LINK_MAX {
            return Err(FsError::TooManyLinks.into());
        }
        let mut draft = Draft::new(self);
        let row = InodeRow { nlink: row.nlink + 1, ctime: caller.now, ..row.clone() };
        let cookie = draft.next_number();
        draft.push(entry(parent, name, &row, cookie));
        draft.put(touched(directory, caller.now));
        draft.put(row);
        Ok(draft.finish(caller, Outcome::Inode(ino)))
    }

    /// Takes a name away from what is not a directory.
    pub(crate) fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Planned<Record> {
        let directory = self.directory(parent)?;
        let (row, cookie) = self.found(parent, name)?;
        if is_dir(row) {
            return Err(FsError::IsDirectory.into());
        }
        let mut draft = Draft::new(self);
        draft.remove_entry(parent, name, cookie);
        draft.put(touched(directory, caller.now));
        draft.put(unlinked(row, caller.now));
        Ok(draft.finish(caller, Outcome::Done))
    }

    /// Removes an empty directory.
    pub(crate) fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Planned<Record> {
        let directory = self.directory(parent)?;
        match name {
            b"." => return Err(FsError::Invalid.into()),
            b".." => return Err(FsError::NotEmpty.into()),
            _ => {}
        }
        let (row, cookie) = self.found(parent, name)?;
        self.check_empty_directory(row)?;
        let mut draft = Draft::new(self);
        draft.remove_entry(parent, name, cookie);
        draft.put(InodeRow { nlink: directory.nlink - 1, ..touched(directory, caller.now) });
        draft.put(unlinked(row, caller.now));
        Ok(draft.finish(caller, Outcome::Done))
    }

    fn check_empty_directory(&self, row: &InodeRow) -> Planned<()> {
        if !is_dir(row) {
            return Err(FsError::NotDirectory.into());
        }
        match self.directories.get(&row.ino) {
            // A name in memory settles it, whatever else the database has.
            Some(directory) if !directory.is_empty() => Err(FsError::NotEmpty.into()),
            Some(directory) if directory.complete => Ok(()),
            _ => Err(Need::Directory(row.ino).into()),
        }
    }

    /// rename(2), renameat2(2).
    pub(crate) fn rename(
        &self,
        caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        how: Rename,
    ) -> Planned<Option<Record>> {
        check_name(to.1)?;
        let (from_dir, to_dir) = (self.directory(from.0)?, self.directory(to.0)?);
        let (source, from_cookie) = self.found(from.0, from.1)?;
        let target = match self.name(to.0, to.1)? {
            Some(slot) => Some((&self.node(slot.ino)?.row, slot.cookie)),
            None => None,
        };
        if is_dir(source) {
            self.check_not_inside(source.ino, to.0)?;
        }
        match (how, target) {
            (Rename::NoReplace, Some(_)) => Err(FsError::Exists.into()),
            (Rename::Exchange, None) => Err(FsError::NotFound.into()),
            // Two names of one inode: nothing is done, and that is success.
            (_, Some((target, _))) if target.ino == source.ino => Ok(None),
            (Rename::Exchange, Some((target, to_cookie))) => {
                if is_dir(target) {
                    self.check_not_inside(target.ino, from.0)?;
                }
                self.exchange(
                    caller,
                    (from_dir, from.1, source, from_cookie),
                    (to_dir, to.1, target, to_cookie),
                )
                .map(Some)
            }
            (_, target) => self
                .replace(caller, (from_dir, from.1, source, from_cookie), (to_dir, to.1), target)
                .map(Some),
        }
    }

    fn replace(
        &self,
        caller: &Caller,
        (from_dir, from_name, source, from_cookie): (&InodeRow, &[u8], &InodeRow, u64),
        (to_dir, to_name): (&InodeRow, &[u8]),
        target: Option<(&InodeRow, u64)>,
    ) -> Planned<Record> {
        if let Some((target, _)) = target {
            match (is_dir(source), is_dir(target)) {
                (true, false) => return Err(FsError::NotDirectory.into()),
                (false, true) => return Err(FsError::IsDirectory.into()),
                (true, true) => self.check_empty_directory(target)?,
                (false, false) => {}
            }
        }
        let now = caller.now;
        let mut draft = Draft::new(self);
        let mut parents = Parents::new(from_dir, to_dir, now);
        if is_dir(source) {
            parents.source_mut().nlink -= 1;
            parents.target_mut().nlink += 1;
        }
        draft.remove_entry(from_dir.ino, from_name, from_cookie);
        // A name that is replaced keeps its position: a directory stream being read shows it once. So does one that is given
        // anew in its directory: at a new position behind all others, who renames what he reads would never come to an end.
        let cookie = match target {
            Some((_, cookie)) => cookie,
            None if from_dir.ino == to_dir.ino => from_cookie,
            None => draft.next_number(),
        };
        draft.push(entry(to_dir.ino, to_name, source, cookie));
        if let Some((target, _)) = target {
            if is_dir(target) {
                parents.target_mut().nlink -= 1;
            }
            draft.put(unlinked(target, now));
        }
        draft.put(moved(source, to_dir.ino, now));
        parents.put_into(&mut draft);
        Ok(draft.finish(caller, Outcome::Done))
    }

    fn exchange(
        &self,
        caller: &Caller,
        (from_dir, from_name, source, from_cookie): (&InodeRow, &[u8], &InodeRow, u64),
        (to_dir, to_name, target, to_cookie): (&InodeRow, &[u8], &InodeRow, u64),
    ) -> Planned<Record> {
        let mut draft = Draft::new(self);
        let mut parents = Parents::new(from_dir, to_dir, caller.now);
        if is_dir(source) {
            parents.source_mut().nlink -= 1;
            parents.target_mut().nlink += 1;
        }
        if is_dir(target) {
            parents.target_mut().nlink -= 1;
            parents.source_mut().nlink += 1;
        }
        draft.push(entry(from_dir.ino, from_name, target, from_cookie));
        draft.push(entry(to_dir.ino, to_name, source, to_cookie));
        draft.put(moved(source, to_dir.ino, caller.now));
        draft.put(moved(target, from_dir.ino, caller.now));
        parents.put_into(&mut draft);
        Ok(draft.finish(caller, Outcome::Done))
    }

    /// A directory cannot be moved below itself. (The kernel has checked what it has in its cache.)
    fn check_not_inside(&self, ino: Ino, mut inside: Ino) -> Planned<()> {
        while inside != 0 {
            if inside == ino {
                return Err(FsError::Invalid.into());
            }
            let parent = self.node(inside)?.row.dir_parent;
            if parent == inside {
                break;
            }
            inside = parent;
        }
        Ok(())
    }

    /// Removes inodes that have no name and that nobody has open.
    pub(crate) fn reap(&self, inos: &[Ino]) -> Planned<Option<Record>> {
        let mut draft = Draft::new(self);
        for &ino in inos {
            let Some(node) = self.nodes.get(&ino).filter(|node| node.row.nlink == 0) else { continue };
            if node.row.did != 0 {
                draft.push(Effect::RemoveData(node.row.did));
            }
            draft.push(Effect::RemoveInode(ino));
            draft.counters.used_bytes -= node.row.charge;
            draft.counters.used_inodes -= 1;
        }
        let caller = Caller { unique: 0, uid: 0, gid: 0, pid: 0, now: Time::default() };
        Ok((!draft.is_empty()).then(|| draft.finish(&caller, Outcome::Done)))
    }
}

impl Draft<'_> {
    fn remove_entry(&mut self, parent: Ino, name: &[u8], cookie: u64) {
        self.push(Effect::RemoveEntry { parent, name: Bytes::copy_from_slice(name), cookie });
    }
}

/// The inode with a name less (a directory with none).
fn unlinked(row: &InodeRow, now: Time) -> InodeRow {
    let nlink = if is_dir(row) { 0 } else { row.nlink - 1 };
    InodeRow { nlink, ctime: now, ..row.clone() }
}

/// The inode under another directory.
fn moved(row: &InodeRow, parent: Ino, now: Time) -> InodeRow {
    let dir_parent = if is_dir(row) { parent } else { 0 };
    InodeRow { dir_parent, ctime: now, ..row.clone() }
}

/// The two directories of a rename, which may be one.
struct Parents {
    from: InodeRow,
    to: Option<InodeRow>,
}

impl Parents {
    fn new(from: &InodeRow, to: &InodeRow, now: Time) -> Self {
        Self { from: touched(from, now), to: (from.ino != to.ino).then(|| touched(to, now)) }
    }

    fn source_mut(&mut self) -> &mut InodeRow {
        &mut self.from
    }

    fn target_mut(&mut self) -> &mut InodeRow {
        self.to.as_mut().unwrap_or(&mut self.from)
    }

    fn put_into(self, draft: &mut Draft<'_>) {
        draft.put(self.from);
        if let Some(to) = self.to {
            draft.put(to);
        }
    }
}
