//! Operations as decisions: each takes the tree and the request and returns what is to be done, what is lacking,
//! or why it cannot be done. Pure: the caller loads what is lacking and asks again, writes the journal, applies.

mod attributes;
mod data;
mod listing;
mod names;
mod xattrs;

use bytes::Bytes;
use smallvec::SmallVec;
use tarbox_store::{EntryRow, InodeRow, Time, UNIT};
use tarbox_types::Ino;

pub(crate) use attributes::{Change, statfs};
pub(crate) use data::{Fallocate, READ_MAX, Reading, Seek};
pub(crate) use listing::{Listed, Page};
pub(crate) use names::{NewInode, Rename};

use crate::{
    effect::{Counters, Effect, Outcome, Record},
    error::FsError,
    tree::{Need, Stop, Tree},
};

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// FUSE `unique`, bit 63 cleared; 0 = our own work.
    pub unique: u64,
    pub uid: u32,
    pub gid: u32,
    /// The thread that asks, as FUSE tells it.
    pub pid: u32,
    pub now: Time,
}

/// Result of a plan.
pub(crate) type Planned<T> = Result<T, Stop>;

/// Names of at most this many bytes.
const NAME_MAX: usize = 255;
/// Targets of symbolic links of at most this many bytes (PATH_MAX less the NUL).
const TARGET_MAX: usize = 4095;
/// Files of at most this many bytes.
pub(crate) const FILE_MAX: u64 = 1 << 53;
/// As many links as ext4 has not, and xfs has.
const LINK_MAX: u32 = i32::MAX as u32;
/// Position of a name: the first two are `.` and `..`.
pub(crate) const FIRST_COOKIE: u64 = 3;

/// The record of one operation while it is put together.
pub(crate) struct Draft<'t> {
    tree: &'t Tree,
    counters: Counters,
    effects: SmallVec<[Effect; 3]>,
}

impl<'t> Draft<'t> {
    pub(crate) fn new(tree: &'t Tree) -> Self {
        Self { tree, counters: tree.counters, effects: SmallVec::new() }
    }

    /// Finished: the operation is `unique`'s, and this is what it is told.
    pub(crate) fn finish(self, caller: &Caller, outcome: Outcome) -> Record {
        Record { unique: caller.unique, counters: self.counters, outcome, effects: self.effects }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// A number never used before, for an inode, a content or a position.
    fn next_number(&mut self) -> u64 {
        let number = self.counters.next_ino;
        self.counters.next_ino += 1;
        number
    }

    fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn put(&mut self, row: InodeRow) {
        self.push(Effect::Inode(row));
    }

    /// One inode more.
    ///
    /// # Errors
    /// `NoSpace` at the quota, after the orphans that nobody has open any more have been removed.
    fn count_inode(&mut self) -> Planned<()> {
        let limit = self.tree.limits.inodes;
        if limit != 0 && self.counters.used_inodes >= limit {
            return Err(self.out_of_space());
        }
        self.counters.used_inodes += 1;
        Ok(())
    }

    /// `units` more are allocated by the inode.
    fn charge(&mut self, row: &mut InodeRow, units: u64) -> Planned<()> {
        if units > self.room() {
            return Err(self.out_of_space());
        }
        row.charge += units * UNIT;
        self.counters.used_bytes += units * UNIT;
        Ok(())
    }

    /// How many units may still be allocated.
    fn room(&self) -> u64 {
        match self.tree.limits.bytes {
            0 => u64::MAX / UNIT,
            limit => limit.saturating_sub(self.counters.used_bytes) / UNIT,
        }
    }

    /// The inode allocates `units` now.
    fn set_charge(&mut self, row: &mut InodeRow, units: u64) {
        self.counters.used_bytes = self.counters.used_bytes + units * UNIT - row.charge;
        row.charge = units * UNIT;
    }

    fn out_of_space(&self) -> Stop {
        if self.tree.may_have_orphans() { Need::Reaping.into() } else { FsError::NoSpace.into() }
    }
}

pub(crate) fn is_dir(row: &InodeRow) -> bool {
    row.mode & libc::S_IFMT == libc::S_IFDIR
}

/// A name that can be looked up.
fn check_name(name: &[u8]) -> Planned<()> {
    match name.len() {
        0 => Err(FsError::NotFound.into()),
        1..=NAME_MAX => Ok(()),
        _ => Err(FsError::NameTooLong.into()),
    }
}

fn check_regular(row: &InodeRow) -> Planned<()> {
    match row.mode & libc::S_IFMT {
        libc::S_IFREG => Ok(()),
        libc::S_IFDIR => Err(FsError::IsDirectory.into()),
        _ => Err(FsError::Invalid.into()),
    }
}

impl Tree {
    /// The row of a directory that still has a name.
    pub(crate) fn directory(&self, ino: Ino) -> Planned<&InodeRow> {
        let row = &self.node(ino)?.row;
        match (is_dir(row), row.nlink) {
            (false, _) => Err(FsError::NotDirectory.into()),
            // Removed, but somebody's working directory: nothing can be made in it.
            (true, 0) => Err(FsError::NotFound.into()),
            (true, _) => Ok(row),
        }
    }

    /// What a name leads to.
    pub(crate) fn lookup(&self, parent: Ino, name: &[u8]) -> Planned<Option<Ino>> {
        check_name(name)?;
        if !is_dir(&self.node(parent)?.row) {
            return Err(FsError::NotDirectory.into());
        }
        let Some(slot) = self.name(parent, name)? else { return Ok(None) };
        let ino = slot.ino;
        self.node(ino)?;
        self.reached_by(ino, parent, name);
        Ok(Some(ino))
    }

    /// The inode that a name leads to, with its position.
    fn found(&self, parent: Ino, name: &[u8]) -> Planned<(&InodeRow, u64)> {
        check_name(name)?;
        let slot = self.name(parent, name)?.ok_or(FsError::NotFound)?;
        Ok((&self.node(slot.ino)?.row, slot.cookie))
    }
}

/// `parent` with a name more or less.
fn touched(parent: &InodeRow, now: Time) -> InodeRow {
    InodeRow { mtime: now, ctime: now, ..parent.clone() }
}

fn entry(parent: Ino, name: &[u8], row: &InodeRow, cookie: u64) -> Effect {
    Effect::Entry(EntryRow {
        parent,
        name: Bytes::copy_from_slice(name),
        ino: row.ino,
        kind: row.mode & libc::S_IFMT,
        cookie,
    })
}

/// setuid, setgid (with group execution) are cleared: what the kernel leaves to us (FUSE_HANDLE_KILLPRIV_V2).
fn without_privileges(mode: u32) -> u32 {
    let mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 { mode & !libc::S_ISGID } else { mode }
}
