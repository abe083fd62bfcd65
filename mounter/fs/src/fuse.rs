//! The file system as `fuse3`'s trait has it: conversion of arguments and replies, one plan per operation.

use std::{
    ffi::OsStr,
    num::NonZeroU32,
    os::unix::ffi::{OsStrExt, OsStringExt},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use fuse3::{
    FileType, Result, SetAttr, Timestamp,
    raw::{Filesystem, Request, reply::*},
};
use futures_util::stream::{self, Stream};
use tarbox_store::{InodeRow, Time, UNIT};
use tarbox_types::{AuditLevel, Ino, fuse as convention};

use crate::{
    audit::{Doing, Operation},
    effect::Outcome,
    error::FsError,
    plan::{Caller, Change, Fallocate, Listed, NewInode, Page, READ_MAX, Rename, Seek, statfs},
    shell::{Query, Shared},
    tree::{Need, Tree},
    xattr::SetFlags,
};

/// The only writer lets the kernel cache without limit: what changes otherwise is invalidated by notification.
const TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Kernel caches of file content stay when a file is opened again.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Every read and write comes here, past the kernel's cache.
const FOPEN_DIRECT_IO: u32 = 1 << 0;
/// Handle of a file whose open came here; one that was opened without a message has 0.
const OPENED: u64 = 1;
/// A write of pages from the kernel's cache, stored into a mapping or kept back: nobody asks for the rest of a short one.
const WRITE_CACHE: u32 = 1 << 0;
/// Names per READDIR; the engine takes as many as fit into the kernel's buffer.
const READDIR_NAMES: usize = 1024;
/// Names per READDIRPLUS.
const READDIRPLUS_NAMES: usize = 256;
/// Source: `linux/falloc.h`.
const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const FALLOC_ZERO_RANGE: u32 = 16;
/// What one request may write at most.
const MAX_WRITE: NonZeroU32 = NonZeroU32::new(1 << 20).expect("1 MiB is not zero");

/// A mounted tenant. Cheap to clone.
#[derive(Clone)]
pub struct FileSystem {
    pub(crate) shared: Arc<Shared>,
}

fn caller(req: &Request) -> Caller {
    Caller { unique: req.unique & !(1 << 63), uid: req.uid, gid: req.gid, pid: req.pid, now: now() }
}

pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
}

fn time(timestamp: Timestamp) -> Time {
    Time { sec: timestamp.sec, nsec: timestamp.nsec }
}

fn timestamp(time: Time) -> Timestamp {
    Timestamp { sec: time.sec, nsec: time.nsec }
}

fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn attr(row: &InodeRow) -> FileAttr {
    FileAttr {
        ino: row.ino,
        size: row.size,
        blocks: row.charge / 512,
        atime: timestamp(row.atime),
        mtime: timestamp(row.mtime),
        ctime: timestamp(row.ctime),
        kind: file_type(row.mode),
        perm: (row.mode & 0o7777) as u16,
        nlink: row.nlink,
        uid: row.uid,
        gid: row.gid,
        rdev: row.rdev,
        blksize: UNIT as u32,
    }
}

/// The answer to a change that shows an inode: as the tree has it now.
fn shown(tree: &Tree, outcome: Outcome) -> std::result::Result<FileAttr, FsError> {
    match outcome {
        Outcome::Inode(ino) => tree.nodes.get(&ino).map(|node| attr(&node.row)).ok_or(FsError::Stale),
        Outcome::Done | Outcome::Count(_) => Err(FsError::Invalid),
    }
}

fn done(_: &Tree, _: Outcome) -> std::result::Result<(), FsError> {
    Ok(())
}

fn entry(attr: FileAttr) -> ReplyEntry {
    ReplyEntry { ttl: TTL, attr, generation: 0 }
}

/// A name that is not there, remembered by the kernel.
fn negative() -> ReplyEntry {
    entry(attr(&InodeRow {
        ino: 0,
        mode: libc::S_IFREG,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 0,
        size: 0,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        dir_parent: 0,
        did: 0,
        cut: 0,
        charge: 0,
        prealloc: Vec::new(),
        target: Bytes::new(),
    }))
}

impl FileSystem {
    async fn make(
        &self,
        req: &Request,
        operation: Operation,
        (parent, name): (Ino, &OsStr),
        new: NewInode<'_>,
    ) -> Result<FileAttr> {
        let caller = caller(req);
        let name = name.as_bytes();
        let doing = Doing::named(operation, parent, name);
        Ok(self
            .shared
            .once(&caller, doing, &[], |tree| tree.make(&caller, parent, name, &new).map(Some), shown)
            .await?)
    }

    async fn renamed(
        &self,
        req: &Request,
        (parent, name): (Ino, &OsStr),
        (new_parent, new_name): (Ino, &OsStr),
        how: Rename,
    ) -> Result<()> {
        let caller = caller(req);
        let (from, to) = ((parent, name.as_bytes()), (new_parent, new_name.as_bytes()));
        let doing = Doing::named(Operation::Rename, parent, name.as_bytes());
        Ok(self.shared.once(&caller, doing, &[], |tree| tree.rename(&caller, from, to, how), done).await?)
    }

    async fn names(&self, ino: Ino, mut after: u64, limit: usize, rows: bool) -> Result<Vec<Listed>> {
        let mut page: Option<(Page, u64, Query<'_>)> = None;
        let mut asked_for = 0;
        loop {
            let need = {
                let core = self.shared.core.lock();
                let tree = &core.tree;
                let current = page.as_ref().filter(|(_, evictions, _)| *evictions == tree.evictions);
                match tree.list(ino, after, limit, rows, current.map(|(page, ..)| page)) {
                    Ok(listed) if listed.is_empty() && current.is_some_and(|(page, ..)| !page.is_last) => {
                        // All names of the page are gone, and not yet for the database: not the end, which an empty answer would be.
                        after = current
                            .and_then(|(page, ..)| page.rows.last())
                            .map_or(after, |(entry, _)| entry.cookie);
                        Need::Page(ino, after)
                    }
                    Ok(listed) => {
                        match listed.iter().find(|entry| rows && entry.row.is_none() && entry.cookie > 2) {
                            // Inodes evicted while their names stayed: a page brings many at once.
                            Some(missing) if missing.cookie != asked_for => {
                                asked_for = missing.cookie;
                                Need::Page(ino, missing.cookie - 1)
                            }
                            Some(missing) => Need::Inode(missing.ino),
                            None => return Ok(listed),
                        }
                    }
                    Err(crate::tree::Stop::Failed(error)) => return Err(error.into()),
                    Err(crate::tree::Stop::Need(Need::Directory(_)))
                        if tree.directories.get(&ino).is_some_and(|directory| directory.large) =>
                    {
                        Need::Page(ino, after)
                    }
                    Err(crate::tree::Stop::Need(need)) => need,
                }
            };
            match need {
                Need::Page(ino, from) => {
                    let (loaded, evictions, query) =
                        self.shared.patiently(|| self.shared.load_page(ino, from.max(2), limit)).await?;
                    if from == after || page.is_some() {
                        let is_last = loaded.len() < limit;
                        page = Some((Page { rows: loaded, is_last }, evictions, query));
                    }
                }
                need => self.shared.supply(need).await?,
            }
        }
    }

    /// Whether each open has to come here; else the kernel is told to stop asking. The answer is one for all inodes of a mount.
    #[must_use]
    pub fn answers_opens(&self) -> bool {
        self.shared.audit.level == AuditLevel::Full
    }

    /// Reads; that is audited before it is shown.
    async fn read_seen(&self, caller: &Caller, ino: Ino, offset: u64, len: u64) -> Result<Bytes> {
        let doing = Doing::to(Operation::Read, ino).at(offset, len);
        let asked = self.shared.audit.asked(caller, doing);
        let data = self.shared.read_bytes(ino, offset, len).await?;
        self.shared.looked_at(caller, asked.as_ref(), data.len() as u64).await?;
        Ok(data)
    }

    async fn barrier(&self, ino: Ino) -> Result<()> {
        let seq = {
            let core = self.shared.core.lock();
            core.tree.nodes.get(&ino).map_or(0, |node| node.dirty.max(node.xattrs_dirty))
        };
        Ok(self.shared.commit_for(seq).await?)
    }
}

/// What a change of attributes is, to who looks at it later.
fn attributes<'a>(ino: Ino, change: &Change) -> Doing<'a> {
    match change {
        Change { uid, gid, .. } if uid.is_some() || gid.is_some() => Doing::to(Operation::Chown, ino),
        Change { mode: Some(_), .. } => Doing::to(Operation::Chmod, ino),
        Change { size: Some(size), .. } => Doing::to(Operation::Truncate, ino).at(*size, 0),
        _ => Doing::to(Operation::Utimens, ino),
    }
}

/// ACLs, labels and capabilities are rights; what users keep in attributes is content.
fn attribute<'a>(operation: Operation, ino: Ino, name: &[u8]) -> Doing<'a> {
    let doing = Doing::to(operation, ino);
    if name.starts_with(b"user.") { doing.kept_from(AuditLevel::Standard) } else { doing }
}

fn sized(value: Bytes, size: u32) -> Result<ReplyXAttr> {
    match size {
        0 => Ok(ReplyXAttr::Size(value.len() as u32)),
        size if value.len() > size as usize => Err(FsError::Range.into()),
        _ => Ok(ReplyXAttr::Data(value)),
    }
}

impl Filesystem for FileSystem {
    async fn init(&self, _req: Request) -> Result<ReplyInit> {
        Ok(ReplyInit::new(MAX_WRITE))
    }

    async fn destroy(&self, _req: Request) {}

    async fn lookup(&self, _req: Request, parent: Ino, name: &OsStr) -> Result<ReplyEntry> {
        let name = name.as_bytes();
        let found = self
            .shared
            .look(|tree| {
                Ok(tree
                    .lookup(parent, name)?
                    .and_then(|ino| tree.nodes.get(&ino))
                    .map(|node| attr(&node.row)))
            })
            .await?;
        Ok(found.map_or_else(negative, entry))
    }

    async fn forget(&self, _req: Request, ino: Ino, _nlookup: u64) {
        self.forgotten(&[ino]);
    }

    async fn batch_forget(&self, _req: Request, inodes: &[(Ino, u64)]) {
        let inos: Vec<Ino> = inodes.iter().map(|(ino, _)| *ino).collect();
        self.forgotten(&inos);
    }

    async fn getattr(&self, _req: Request, ino: Ino, _fh: Option<u64>, _flags: u32) -> Result<ReplyAttr> {
        let attr = self.shared.look(|tree| Ok(attr(&tree.node(ino)?.row))).await?;
        Ok(ReplyAttr { ttl: TTL, attr })
    }

    async fn setattr(&self, req: Request, ino: Ino, _fh: Option<u64>, set: SetAttr) -> Result<ReplyAttr> {
        let caller = caller(&req);
        let change = Change {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime.map(time),
            mtime: set.mtime.map(time),
            ctime: set.ctime.map(time),
            kill_privileges: set.lock_owner == Some(convention::SETATTR_KILL_SUIDGID),
        };
        let attr = self
            .shared
            .once(
                &caller,
                attributes(ino, &change),
                &[],
                |tree| tree.set_attributes(&caller, ino, &change).map(Some),
                shown,
            )
            .await?;
        Ok(ReplyAttr { ttl: TTL, attr })
    }

    async fn readlink(&self, _req: Request, ino: Ino) -> Result<ReplyData> {
        let target = self
            .shared
            .look(|tree| {
                let row = &tree.node(ino)?.row;
                if row.mode & libc::S_IFMT == libc::S_IFLNK {
                    Ok(row.target.clone())
                } else {
                    Err(FsError::Invalid.into())
                }
            })
            .await?;
        Ok(ReplyData { data: target })
    }

    async fn symlink(&self, req: Request, parent: Ino, name: &OsStr, link: &OsStr) -> Result<ReplyEntry> {
        let new = NewInode { mode: libc::S_IFLNK | 0o777, umask: None, rdev: 0, target: link.as_bytes() };
        self.make(&req, Operation::Symlink, (parent, name), new).await.map(entry)
    }

    async fn mknod(
        &self,
        req: Request,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<ReplyEntry> {
        let (mode, umask) = convention::unpack_umask(mode);
        let new = NewInode { mode, umask, rdev, target: b"" };
        let is_file = mode & libc::S_IFMT == libc::S_IFREG;
        let operation = if is_file { Operation::Create } else { Operation::Mknod };
        self.make(&req, operation, (parent, name), new).await.map(entry)
    }

    async fn mkdir(
        &self,
        req: Request,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<ReplyEntry> {
        let umask = (umask & convention::UMASK_UNAPPLIED != 0).then_some(umask & 0o7777);
        let new = NewInode { mode: libc::S_IFDIR | mode & 0o7777, umask, rdev: 0, target: b"" };
        self.make(&req, Operation::Mkdir, (parent, name), new).await.map(entry)
    }

    async fn unlink(&self, req: Request, parent: Ino, name: &OsStr) -> Result<()> {
        let (caller, name) = (caller(&req), name.as_bytes());
        let doing = Doing::named(Operation::Unlink, parent, name);
        Ok(self
            .shared
            .once(&caller, doing, &[], |tree| tree.unlink(&caller, parent, name).map(Some), done)
            .await?)
    }

    async fn rmdir(&self, req: Request, parent: Ino, name: &OsStr) -> Result<()> {
        let (caller, name) = (caller(&req), name.as_bytes());
        let doing = Doing::named(Operation::Rmdir, parent, name);
        Ok(self
            .shared
            .once(&caller, doing, &[], |tree| tree.rmdir(&caller, parent, name).map(Some), done)
            .await?)
    }

    async fn rename(&self, req: Request, parent: Ino, name: &OsStr, to: Ino, to_name: &OsStr) -> Result<()> {
        self.renamed(&req, (parent, name), (to, to_name), Rename::Replace).await
    }

    async fn rename2(
        &self,
        req: Request,
        parent: Ino,
        name: &OsStr,
        to: Ino,
        to_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let how = match flags {
            0 => Rename::Replace,
            libc::RENAME_NOREPLACE => Rename::NoReplace,
            libc::RENAME_EXCHANGE => Rename::Exchange,
            _ => return Err(FsError::Invalid.into()),
        };
        self.renamed(&req, (parent, name), (to, to_name), how).await
    }

    async fn link(&self, req: Request, ino: Ino, parent: Ino, name: &OsStr) -> Result<ReplyEntry> {
        let (caller, name) = (caller(&req), name.as_bytes());
        let attr = self
            .shared
            .once(
                &caller,
                Doing::named(Operation::Link, parent, name),
                &[],
                |tree| tree.link(&caller, ino, parent, name).map(Some),
                shown,
            )
            .await?;
        Ok(entry(attr))
    }

    /// Not needed: a node id says everything (the kernel stops asking, and opens without a message). Only where every open and read
    /// is audited, both have to come here.
    async fn open(&self, req: Request, ino: Ino, _flags: u32) -> Result<ReplyOpen> {
        if !self.answers_opens() {
            return Err(FsError::NotNeeded.into());
        }
        let caller = caller(&req);
        let asked = self.shared.audit.asked(&caller, Doing::to(Operation::Open, ino));
        self.shared.looked_at(&caller, asked.as_ref(), 0).await?;
        Ok(ReplyOpen { fh: OPENED, flags: FOPEN_DIRECT_IO })
    }

    async fn opendir(&self, _req: Request, _ino: Ino, _flags: u32) -> Result<ReplyOpen> {
        Err(FsError::NotNeeded.into())
    }

    async fn read(&self, req: Request, ino: Ino, fh: u64, offset: u64, size: u32) -> Result<ReplyData> {
        if !self.answers_opens() {
            return Ok(ReplyData { data: self.shared.read_bytes(ino, offset, u64::from(size)).await? });
        }
        if fh != OPENED {
            self.shared.audit.warn_of_unseen_opens();
        }
        let data = self.read_seen(&caller(&req), ino, offset, u64::from(size)).await?;
        Ok(ReplyData { data })
    }

    async fn write(
        &self,
        req: Request,
        ino: Ino,
        _fh: u64,
        offset: u64,
        data: &[u8],
        write_flags: u32,
        flags: u32,
    ) -> Result<ReplyWrite> {
        let caller = caller(&req);
        let kill = write_flags & convention::WRITE_KILL_SUIDGID != 0;
        let written = self
            .shared
            .once(
                &caller,
                Doing::to(Operation::Write, ino).at(offset, data.len() as u64),
                data,
                |tree| tree.write(&caller, ino, offset, data.len() as u64, kill).map(Some),
                |_, outcome| match outcome {
                    Outcome::Count(count) => Ok(count as u32),
                    Outcome::Done | Outcome::Inode(_) => Ok(0),
                },
            )
            .await?;
        if write_flags & WRITE_CACHE != 0 && (written as usize) < data.len() {
            // A short count would be taken for all of them, and msync(2) and fsync(2) would know of nothing.
            self.shared.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(FsError::NoSpace.into());
        }
        if flags & (libc::O_SYNC | libc::O_DSYNC) as u32 != 0 {
            self.barrier(ino).await?;
        }
        Ok(ReplyWrite { written })
    }

    async fn statfs(&self, _req: Request, _ino: Ino) -> Result<ReplyStatFs> {
        Ok(statfs(&self.shared.core.lock().tree))
    }

    async fn release(&self, _: Request, _: Ino, _: u64, _: u32, _: u64, _: bool) -> Result<()> {
        Ok(())
    }

    async fn releasedir(&self, _req: Request, _ino: Ino, _fh: u64, _flags: u32) -> Result<()> {
        Ok(())
    }

    async fn flush(&self, _req: Request, _ino: Ino, _fh: u64, _lock_owner: u64) -> Result<()> {
        Err(FsError::NotNeeded.into())
    }

    async fn fsync(&self, _req: Request, ino: Ino, _fh: u64, _datasync: bool) -> Result<()> {
        self.barrier(ino).await
    }

    async fn fsyncdir(&self, _req: Request, ino: Ino, _fh: u64, _datasync: bool) -> Result<()> {
        self.barrier(ino).await
    }

    async fn setxattr(
        &self,
        req: Request,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        position: u32,
    ) -> Result<()> {
        let flags = SetFlags::from_bits(flags).ok_or(FsError::Invalid)?;
        let (caller, name) = (caller(&req), name.as_bytes());
        let kill_sgid = position & convention::ACL_KILL_SGID != 0;
        let plan = |tree: &Tree| tree.set_xattr(&caller, ino, (name, value), flags, kill_sgid).map(Some);
        let doing = attribute(Operation::Setxattr, ino, name);
        Ok(self.shared.once(&caller, doing, &[], plan, done).await?)
    }

    async fn getxattr(&self, _req: Request, ino: Ino, name: &OsStr, size: u32) -> Result<ReplyXAttr> {
        sized(self.shared.look(|tree| tree.get_xattr(ino, name.as_bytes())).await?, size)
    }

    async fn listxattr(&self, req: Request, ino: Ino, size: u32) -> Result<ReplyXAttr> {
        sized(self.shared.look(|tree| tree.list_xattrs(req.uid, ino)).await?, size)
    }

    async fn removexattr(&self, req: Request, ino: Ino, name: &OsStr) -> Result<()> {
        let (caller, name) = (caller(&req), name.as_bytes());
        Ok(self
            .shared
            .once(
                &caller,
                attribute(Operation::Removexattr, ino, name),
                &[],
                |tree| tree.remove_xattr(&caller, ino, name).map(Some),
                done,
            )
            .await?)
    }

    async fn readdir<'a>(
        &'a self,
        _req: Request,
        parent: Ino,
        _fh: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        let listed = self.names(parent, offset as u64, READDIR_NAMES, false).await?;
        let entries: Vec<_> = listed
            .into_iter()
            .map(|entry| {
                Ok(DirectoryEntry {
                    inode: entry.ino,
                    kind: file_type(entry.kind),
                    name: std::ffi::OsString::from_vec(entry.name.to_vec()),
                    offset: entry.cookie as i64,
                })
            })
            .collect();
        Ok(ReplyDirectory { entries: stream::iter(entries) })
    }

    async fn readdirplus<'a>(
        &'a self,
        _req: Request,
        parent: Ino,
        _fh: u64,
        offset: u64,
        _lock_owner: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>> {
        let listed = self.names(parent, offset, READDIRPLUS_NAMES, true).await?;
        let entries: Vec<_> = listed.into_iter().map(|entry| Ok(plus(entry))).collect();
        Ok(ReplyDirectoryPlus { entries: stream::iter(entries) })
    }

    async fn create(
        &self,
        req: Request,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<ReplyCreated> {
        let (mode, umask) = convention::unpack_umask(mode);
        let new = NewInode { mode: libc::S_IFREG | mode & 0o7777, umask, rdev: 0, target: b"" };
        let attr = if flags & convention::O_TMPFILE_BITS != 0 {
            let caller = caller(&req);
            let nameless = &self.shared.nameless;
            self.shared
                .once(
                    &caller,
                    Doing::named(Operation::Create, parent, b""),
                    &[],
                    |tree| tree.make_nameless(&caller, parent, &new).map(Some),
                    |tree, outcome| {
                        let attr = shown(tree, outcome)?;
                        nameless.lock().insert(attr.ino);
                        Ok(attr)
                    },
                )
                .await?
        } else {
            self.make(&req, Operation::Create, (parent, name), new).await?
        };
        let (fh, flags) =
            if self.answers_opens() { (OPENED, FOPEN_DIRECT_IO) } else { (0, FOPEN_KEEP_CACHE) };
        Ok(ReplyCreated { ttl: TTL, attr, generation: 0, fh, flags })
    }

    async fn fallocate(
        &self,
        req: Request,
        ino: Ino,
        _fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let keep_size = mode & FALLOC_KEEP_SIZE != 0;
        let what = match mode & !FALLOC_KEEP_SIZE {
            0 => Fallocate::Allocate,
            FALLOC_PUNCH_HOLE if keep_size => Fallocate::PunchHole,
            FALLOC_ZERO_RANGE => Fallocate::ZeroRange,
            _ => return Err(FsError::NotSupported.into()),
        };
        let range = offset..offset.checked_add(length).filter(|_| length > 0).ok_or(FsError::Invalid)?;
        let caller = caller(&req);
        let plan = |tree: &Tree| tree.fallocate(&caller, ino, range.clone(), what, keep_size).map(Some);
        let doing = Doing::to(Operation::Allocate, ino).at(offset, length);
        Ok(self.shared.once(&caller, doing, &[], plan, done).await?)
    }

    async fn lseek(&self, _req: Request, ino: Ino, _fh: u64, offset: u64, whence: u32) -> Result<ReplyLSeek> {
        let what = match whence as i32 {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return Err(FsError::Invalid.into()),
        };
        Ok(ReplyLSeek { offset: self.shared.look(|tree| tree.seek(ino, offset, what)).await? })
    }

    async fn copy_file_range(
        &self,
        req: Request,
        ino: Ino,
        _fh_in: u64,
        off_in: u64,
        ino_out: Ino,
        _fh_out: u64,
        off_out: u64,
        length: u64,
        _flags: u64,
    ) -> Result<ReplyCopyFileRange> {
        // What was done before is told again by `write`, without anything awaited in between: the table goes when all were asked.
        let data = if self.shared.told.get(caller(&req).unique).is_some() {
            Bytes::new()
        } else {
            // A part is copied and the caller asks for the rest, as with a short write.
            let data = self.read_seen(&caller(&req), ino, off_in, length.min(READ_MAX)).await?;
            if data.is_empty() {
                return Ok(ReplyCopyFileRange { copied: 0 });
            }
            data
        };
        let kill = if req.uid == 0 { 0 } else { convention::WRITE_KILL_SUIDGID };
        let written = self.write(req, ino_out, 0, off_out, &data, kill, 0).await?;
        Ok(ReplyCopyFileRange { copied: u64::from(written.written) })
    }

    async fn getlk(
        &self,
        _: Request,
        _: Ino,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u32,
        _: u32,
    ) -> Result<ReplyLock> {
        Err(FsError::NotNeeded.into())
    }

    /// Not needed: locks of the only mount of a tenant are the kernel's own.
    async fn setlk(
        &self,
        _: Request,
        _: Ino,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u32,
        _: u32,
        _: bool,
    ) -> Result<()> {
        Err(FsError::NotNeeded.into())
    }
}

fn plus(entry: Listed) -> DirectoryEntryPlus {
    // `.` and `..` carry no inode to be cached: node id 0 says so.
    let attr = match &entry.row {
        Some(row) => attr(row),
        None => FileAttr { ino: 0, kind: file_type(entry.kind), ..negative().attr },
    };
    DirectoryEntryPlus {
        inode: entry.ino,
        generation: 0,
        kind: file_type(entry.kind),
        name: std::ffi::OsString::from_vec(entry.name.to_vec()),
        offset: entry.cookie as i64,
        attr,
        entry_ttl: TTL,
        attr_ttl: TTL,
    }
}
