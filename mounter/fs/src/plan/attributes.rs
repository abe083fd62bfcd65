//! Attributes: setattr with truncation, statfs.

use tarbox_store::{InodeRow, Time, UNIT};
use tarbox_types::Ino;

use super::{Caller, Draft, FILE_MAX, Planned, check_regular, is_dir, without_privileges};
use crate::{
    acl::{self, Acl},
    effect::{Effect, Outcome, Record},
    error::FsError,
    tree::{Content, Need, Tree},
    xattr::{SetFlags, Xattrs},
};

/// What setattr is to change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
    pub ctime: Option<Time>,
    /// Truncation by a caller without CAP_FSETID.
    pub kill_privileges: bool,
}

impl Change {
    fn is_empty(&self) -> bool {
        let Self { mode, uid, gid, size, atime, mtime, ctime: _, kill_privileges: _ } = self;
        mode.is_none()
            && uid.is_none()
            && gid.is_none()
            && size.is_none()
            && atime.is_none()
            && mtime.is_none()
    }
}

/// File capabilities.
const CAPABILITY: &[u8] = b"security.capability";
/// Contents of more blocks than this get a new data id when they are truncated to nothing, so that it takes constant time.
const LARGE_CONTENT_BLOCKS: u64 = 64;

impl Tree {
    /// chmod, chown, truncate, utimensat.
    pub(crate) fn set_attributes(&self, caller: &Caller, ino: Ino, change: &Change) -> Planned<Record> {
        let mut draft = Draft::new(self);
        let mut row = self.node(ino)?.row.clone();
        if change.is_empty() && !is_dir(&row) && without_privileges(row.mode) != row.mode {
            // What the kernel leaves of chown(2) with neither owner nor group, and of clearing these bits before a write by
            // somebody who need not own the file: the two look the same here, so nobody is refused.
            draft.drop_privileges(&mut row, true)?;
        }
        row.ctime = change.ctime.unwrap_or(caller.now);
        if let Some(size) = change.size {
            check_regular(&row)?;
            draft.truncate(&mut row, size)?;
            row.mtime = caller.now;
            draft.drop_privileges(&mut row, change.kill_privileges)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            row.uid = change.uid.unwrap_or(row.uid);
            row.gid = change.gid.unwrap_or(row.gid);
            // chown(2): whoever asks, except for directories.
            if !is_dir(&row) {
                draft.drop_privileges(&mut row, true)?;
            }
        }
        if let Some(mode) = change.mode {
            draft.change_mode(&mut row, mode)?;
        }
        row.atime = change.atime.unwrap_or(row.atime);
        row.mtime = change.mtime.unwrap_or(row.mtime);
        draft.put(row);
        // The inode's effect comes first: applying its attributes' effect needs it.
        let last = draft.effects.len() - 1;
        draft.effects.swap(0, last);
        Ok(draft.finish(caller, Outcome::Inode(ino)))
    }

    /// The content of a file in memory.
    pub(crate) fn content_of(&self, row: &InodeRow) -> Planned<&Content> {
        self.contents.get(&row.did).ok_or_else(|| Need::Inode(row.ino).into())
    }
}

impl Draft<'_> {
    /// File capabilities go with every change of content, setuid and setgid where the caller has no CAP_FSETID.
    pub(super) fn drop_privileges(&mut self, row: &mut InodeRow, with_mode: bool) -> Planned<()> {
        if with_mode {
            row.mode = without_privileges(row.mode);
        }
        if let Some(list) = self.tree.xattrs(row.ino)? {
            let mut list = Xattrs::decode(Some(list))?;
            if list.remove(CAPABILITY).is_ok() {
                self.push(Effect::Xattrs { ino: row.ino, value: list.encode() });
            }
        }
        Ok(())
    }

    /// chmod: an access ACL follows.
    fn change_mode(&mut self, row: &mut InodeRow, mode: u32) -> Planned<()> {
        row.mode = row.mode & libc::S_IFMT | mode & 0o7777;
        let Some(list) = self.tree.xattrs(row.ino)? else { return Ok(()) };
        let mut list = Xattrs::decode(Some(list))?;
        if let Some(value) = list.get(acl::ACCESS).cloned()
            && let Some(access) = Acl::parse(&value)?
        {
            list.set(acl::ACCESS, &access.chmod(mode).to_bytes(), SetFlags::default())?;
            self.push(Effect::Xattrs { ino: row.ino, value: list.encode() });
        }
        Ok(())
    }

    /// Sets the size of a file; what is cut off is gone, what is added is a hole.
    pub(super) fn truncate(&mut self, row: &mut InodeRow, size: u64) -> Planned<()> {
        if size > self.largest_file() {
            return Err(FsError::FileTooLarge.into());
        }
        if size < row.size || size == 0 && row.charge > 0 {
            self.cut_off(row, size)?;
        }
        row.size = size;
        Ok(())
    }

    /// The largest size a file may have.
    pub(super) fn largest_file(&self) -> u64 {
        match self.tree.limits.file_bytes {
            0 => FILE_MAX,
            limit => limit.min(FILE_MAX),
        }
    }

    fn cut_off(&mut self, row: &mut InodeRow, size: u64) -> Planned<()> {
        let kept = size.div_ceil(UNIT);
        if size == 0 {
            self.set_charge(row, 0);
            row.prealloc.clear();
            if row.did != 0 && row.size / self.tree.block_size > LARGE_CONTENT_BLOCKS {
                self.push(Effect::RemoveData(row.did));
                row.did = self.next_number();
                row.cut = u64::MAX >> 1;
                return Ok(());
            }
        } else {
            let end = row.size.div_ceil(UNIT);
            let content = self.tree.content_of(row)?;
            let beyond_end: u64 = row.prealloc.iter().map(|r| r.end.saturating_sub(r.start.max(end))).sum();
            let gone = content.allocated(row.did, kept..end.max(kept), &row.prealloc)? + beyond_end;
            self.set_charge(row, (row.charge / UNIT).saturating_sub(gone));
            row.prealloc.retain_mut(|range| {
                range.end = range.end.min(kept);
                !range.is_empty()
            });
        }
        row.cut = row.cut.min(size);
        self.push(Effect::Truncate { did: row.did, from: size });
        Ok(())
    }
}

/// Space as `statfs(2)` shows it: the quota where there is one.
pub(crate) fn statfs(tree: &Tree) -> fuse3::raw::reply::ReplyStatFs {
    let units = |limit: u64, used: u64| match limit {
        // Without a quota the database's disk is the limit, which only the database knows.
        0 => ((1 << 50) / UNIT, (1 << 50) / UNIT),
        _ => (limit / UNIT, limit.saturating_sub(used) / UNIT),
    };
    let (blocks, free) = units(tree.limits.bytes, tree.counters.used_bytes);
    let (files, files_free) = match tree.limits.inodes {
        0 => (1 << 32, (1 << 32) - tree.counters.used_inodes),
        limit => (limit, limit.saturating_sub(tree.counters.used_inodes)),
    };
    fuse3::raw::reply::ReplyStatFs {
        blocks,
        bfree: free,
        bavail: free,
        files,
        ffree: files_free,
        bsize: UNIT as u32,
        namelen: super::NAME_MAX as u32,
        frsize: UNIT as u32,
    }
}
