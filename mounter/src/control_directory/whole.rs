//! A tenant as the kernel sees it: every request goes to the view that its node id names.
//!
//! The head's requests go on unchanged; what else there is stands in boxes of its own, so that they are no larger for it.

use std::{ffi::OsStr, future::ready, sync::Arc};

use bytes::Bytes;
use fuse3::{
    Result, SetAttr,
    raw::{Filesystem, Request, reply::*},
};
use futures_util::{
    StreamExt,
    future::Either,
    stream::{self, Stream},
};
use tarbox_fs::FileSystem;
use tarbox_types::ROOT_INO;

use super::{
    ControlDirectory, errno,
    layout::{Directory, NAME},
    node::{CONTROL, HEAD, ino_of, node, root_of, view_of},
};

/// Kernel caches of file content stay when a file is opened again.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// See the module's documentation.
pub struct WholeTenant {
    head: Arc<FileSystem>,
    /// `None`: switched off, as if there were no such thing.
    control: Option<Arc<ControlDirectory>>,
}

fn is_head(node: u64) -> bool {
    view_of(node) == HEAD
}

/// Why a name, or an inode, outside the head cannot be changed.
fn refused(node: u64) -> fuse3::Errno {
    if view_of(node) == CONTROL { errno::not_permitted() } else { errno::read_only() }
}

impl WholeTenant {
    /// The head with its control directory, or without one.
    #[must_use]
    pub fn new(head: Arc<FileSystem>, control: Option<Arc<ControlDirectory>>) -> Self {
        Self { head, control }
    }

    /// Whether a name in the head is the control directory's.
    fn is_control(&self, parent: u64, name: &OsStr) -> bool {
        parent == ROOT_INO && self.control.is_some() && name == NAME
    }

    /// Entries of a directory of the head, without what the tenant itself has under the control directory's name.
    fn without_own<T: Send>(
        &self,
        parent: u64,
        entries: impl Stream<Item = Result<T>> + Send,
        name: fn(&T) -> &OsStr,
    ) -> impl Stream<Item = Result<T>> + Send {
        let hides = parent == ROOT_INO && self.control.is_some();
        entries.filter(move |entry| ready(!(hides && entry.as_ref().is_ok_and(|entry| name(entry) == NAME))))
    }

    fn control(&self) -> Result<&ControlDirectory> {
        self.control.as_deref().ok_or_else(errno::stale)
    }

    /// The checkpoint that a node is of.
    async fn view(&self, node: u64) -> Result<FileSystem> {
        self.head.for_caller(self.control()?.views.get(view_of(node))).await?
    }

    /// Fails unless the name can be changed at all.
    fn check_change(&self, parent: u64, name: &OsStr) -> Result<()> {
        if !is_head(parent) {
            return Err(refused(parent));
        }
        if self.is_control(parent, name) { Err(errno::not_permitted()) } else { Ok(()) }
    }

    /// Fails unless the name can be made.
    fn check_new(&self, parent: u64, name: &OsStr) -> Result<()> {
        if self.is_control(parent, name) { Err(errno::exists()) } else { self.check_change(parent, name) }
    }

    async fn lookup_elsewhere(&self, req: Request, parent: u64, name: &OsStr) -> Result<ReplyEntry> {
        if is_head(parent) {
            return self.control()?.top().await;
        }
        if view_of(parent) == CONTROL {
            return self.head.for_caller(self.control()?.lookup(ino_of(parent), name)).await?;
        }
        let mut entry = self.view(parent).await?.lookup(req, ino_of(parent), name).await?;
        entry.attr.ino = node(view_of(parent), entry.attr.ino);
        Ok(entry)
    }

    async fn getattr_elsewhere(&self, req: Request, of: u64) -> Result<ReplyAttr> {
        if view_of(of) == CONTROL {
            return self.control()?.getattr(ino_of(of)).await;
        }
        let mut reply = self.view(of).await?.getattr(req, ino_of(of), None, 0).await?;
        reply.attr.ino = of;
        Ok(reply)
    }

    async fn read_elsewhere(&self, req: Request, of: u64, offset: u64, size: u32) -> Result<Bytes> {
        if view_of(of) == CONTROL {
            return self.control()?.read(ino_of(of), offset, size);
        }
        Ok(self.view(of).await?.read(req, ino_of(of), 0, offset, size).await?.data)
    }

    async fn readlink_elsewhere(&self, req: Request, of: u64) -> Result<ReplyData> {
        if view_of(of) == CONTROL {
            return Ok(ReplyData { data: self.control()?.read(ino_of(of), 0, libc::PATH_MAX as u32)? });
        }
        self.view(of).await?.readlink(req, ino_of(of)).await
    }

    async fn write_elsewhere(&self, req: Request, of: u64, data: &[u8]) -> Result<ReplyWrite> {
        let control = self.control()?;
        if view_of(of) == CONTROL {
            let written = control.write(req.unique & !(1 << 63), ino_of(of), data).await?;
            return Ok(ReplyWrite { written });
        }
        // Memory that was mapped and written has changed the kernel's pages: what they show from now on is the checkpoint's.
        if let Some(kernel) = control.kernel.get().cloned() {
            std::thread::spawn(move || kernel.invalidate_inode(of, 0, 0));
        }
        Err(errno::read_only())
    }

    /// Directory entries of a view: their numbers, and where its root lies.
    async fn readdir_elsewhere(
        &self,
        req: Request,
        parent: u64,
        offset: i64,
    ) -> Result<Vec<Result<DirectoryEntry>>> {
        if view_of(parent) == CONTROL {
            let entries = self.control()?.entries(ino_of(parent), offset.cast_unsigned());
            let entries = self.head.for_caller(entries).await??;
            let entry = |entry: super::nodes::Entry| DirectoryEntry {
                inode: entry.node,
                kind: entry.kind,
                name: entry.name.into(),
                offset: entry.cookie.cast_signed(),
            };
            return Ok(entries.into_iter().map(|found| Ok(entry(found))).collect());
        }
        let view = self.view(parent).await?;
        let listed = view.readdir(req, ino_of(parent), 0, offset).await?;
        let entry = |entry: Result<DirectoryEntry>| {
            entry.map(|entry| DirectoryEntry { inode: shown(parent, &entry.name, entry.inode), ..entry })
        };
        Ok(listed.entries.map(entry).collect().await)
    }

    async fn readdirplus_elsewhere(
        &self,
        req: Request,
        parent: u64,
        offset: u64,
    ) -> Result<Vec<Result<DirectoryEntryPlus>>> {
        if view_of(parent) == CONTROL {
            let entries = self.head.for_caller(self.control()?.entries(ino_of(parent), offset)).await??;
            let attr = self.getattr_elsewhere(req, root_of(CONTROL)).await?.attr;
            // Node id 0: the kernel caches nothing, and asks when it has to know.
            let entry = |entry: super::nodes::Entry| DirectoryEntryPlus {
                inode: entry.node,
                generation: 0,
                kind: entry.kind,
                name: entry.name.into(),
                offset: entry.cookie.cast_signed(),
                attr: FileAttr { ino: 0, kind: entry.kind, ..attr },
                entry_ttl: std::time::Duration::ZERO,
                attr_ttl: std::time::Duration::ZERO,
            };
            return Ok(entries.into_iter().map(|found| Ok(entry(found))).collect());
        }
        let view = self.view(parent).await?;
        let listed = view.readdirplus(req, ino_of(parent), 0, offset, 0).await?;
        let entry = |entry: Result<DirectoryEntryPlus>| {
            entry.map(|mut entry| {
                entry.inode = shown(parent, &entry.name, entry.inode);
                entry.attr.ino = node(view_of(parent), entry.attr.ino);
                entry
            })
        };
        Ok(listed.entries.map(entry).collect().await)
    }
}

/// The number that readdir(3) shows for a name in a view: above its root lie all the others.
fn shown(parent: u64, name: &OsStr, ino: u64) -> u64 {
    if ino_of(parent) == ROOT_INO && name == ".." {
        return node(CONTROL, Directory::Snapshots.ino());
    }
    node(view_of(parent), ino)
}

impl Filesystem for WholeTenant {
    async fn init(&self, req: Request) -> Result<ReplyInit> {
        self.head.init(req).await
    }

    async fn destroy(&self, req: Request) {
        self.head.destroy(req).await;
    }

    async fn lookup(&self, req: Request, parent: u64, name: &OsStr) -> Result<ReplyEntry> {
        if is_head(parent) && !self.is_control(parent, name) {
            return self.head.lookup(req, parent, name).await;
        }
        Box::pin(self.lookup_elsewhere(req, parent, name)).await
    }

    async fn forget(&self, req: Request, of: u64, nlookup: u64) {
        match (view_of(of), &self.control) {
            (HEAD, _) => self.head.forget(req, of, nlookup).await,
            (CONTROL, Some(control)) => control.forget(ino_of(of)),
            _ => {}
        }
    }

    async fn batch_forget(&self, req: Request, nodes: &[(u64, u64)]) {
        if nodes.iter().all(|(of, _)| is_head(*of)) {
            return self.head.batch_forget(req, nodes).await;
        }
        for (of, nlookup) in nodes {
            self.forget(req, *of, *nlookup).await;
        }
    }

    async fn getattr(&self, req: Request, of: u64, fh: Option<u64>, flags: u32) -> Result<ReplyAttr> {
        if is_head(of) {
            return self.head.getattr(req, of, fh, flags).await;
        }
        Box::pin(self.getattr_elsewhere(req, of)).await
    }

    async fn setattr(&self, req: Request, of: u64, fh: Option<u64>, set: SetAttr) -> Result<ReplyAttr> {
        match view_of(of) {
            HEAD => self.head.setattr(req, of, fh, set).await,
            CONTROL => Box::pin(self.control()?.setattr(ino_of(of), &set)).await,
            _ => Err(refused(of)),
        }
    }

    async fn readlink(&self, req: Request, of: u64) -> Result<ReplyData> {
        if is_head(of) {
            return self.head.readlink(req, of).await;
        }
        Box::pin(self.readlink_elsewhere(req, of)).await
    }

    async fn symlink(&self, req: Request, parent: u64, name: &OsStr, link: &OsStr) -> Result<ReplyEntry> {
        self.check_new(parent, name)?;
        self.head.symlink(req, parent, name, link).await
    }

    async fn mknod(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<ReplyEntry> {
        self.check_new(parent, name)?;
        self.head.mknod(req, parent, name, mode, rdev).await
    }

    async fn mkdir(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<ReplyEntry> {
        self.check_new(parent, name)?;
        self.head.mkdir(req, parent, name, mode, umask).await
    }

    async fn unlink(&self, req: Request, parent: u64, name: &OsStr) -> Result<()> {
        self.check_change(parent, name)?;
        self.head.unlink(req, parent, name).await
    }

    async fn rmdir(&self, req: Request, parent: u64, name: &OsStr) -> Result<()> {
        self.check_change(parent, name)?;
        self.head.rmdir(req, parent, name).await
    }

    async fn rename(&self, req: Request, parent: u64, name: &OsStr, to: u64, to_name: &OsStr) -> Result<()> {
        self.check_change(parent, name)?;
        self.check_change(to, to_name)?;
        self.head.rename(req, parent, name, to, to_name).await
    }

    async fn rename2(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        to: u64,
        to_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.check_change(parent, name)?;
        self.check_change(to, to_name)?;
        self.head.rename2(req, parent, name, to, to_name, flags).await
    }

    async fn link(&self, req: Request, of: u64, parent: u64, name: &OsStr) -> Result<ReplyEntry> {
        self.check_new(parent, name)?;
        if !is_head(of) {
            return Err(errno::crosses());
        }
        self.head.link(req, of, parent, name).await
    }

    async fn open(&self, req: Request, of: u64, flags: u32) -> Result<ReplyOpen> {
        if is_head(of) || !self.head.answers_opens() {
            // One answer for all inodes: that none is needed, or each is.
            return self.head.open(req, of, flags).await;
        }
        // As if it had been opened without a message.
        Ok(ReplyOpen { fh: 0, flags: FOPEN_KEEP_CACHE })
    }

    async fn opendir(&self, req: Request, of: u64, flags: u32) -> Result<ReplyOpen> {
        self.head.opendir(req, of, flags).await
    }

    async fn read(&self, req: Request, of: u64, fh: u64, offset: u64, size: u32) -> Result<ReplyData> {
        if is_head(of) {
            return self.head.read(req, of, fh, offset, size).await;
        }
        Ok(ReplyData { data: Box::pin(self.read_elsewhere(req, of, offset, size)).await? })
    }

    async fn write(
        &self,
        req: Request,
        of: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        write_flags: u32,
        flags: u32,
    ) -> Result<ReplyWrite> {
        if is_head(of) {
            return self.head.write(req, of, fh, offset, data, write_flags, flags).await;
        }
        Box::pin(self.write_elsewhere(req, of, data)).await
    }

    async fn statfs(&self, req: Request, of: u64) -> Result<ReplyStatFs> {
        self.head.statfs(req, of).await
    }

    async fn release(&self, _: Request, _: u64, _: u64, _: u32, _: u64, _: bool) -> Result<()> {
        Ok(())
    }

    async fn releasedir(&self, _: Request, _: u64, _: u64, _: u32) -> Result<()> {
        Ok(())
    }

    async fn flush(&self, req: Request, of: u64, fh: u64, lock_owner: u64) -> Result<()> {
        Filesystem::flush(&*self.head, req, of, fh, lock_owner).await
    }

    async fn fsync(&self, req: Request, of: u64, fh: u64, datasync: bool) -> Result<()> {
        // Nothing of another view waits for a commit; a command is done when it is answered.
        if is_head(of) { self.head.fsync(req, of, fh, datasync).await } else { Ok(()) }
    }

    async fn fsyncdir(&self, req: Request, of: u64, fh: u64, datasync: bool) -> Result<()> {
        if is_head(of) { self.head.fsyncdir(req, of, fh, datasync).await } else { Ok(()) }
    }

    async fn setxattr(
        &self,
        req: Request,
        of: u64,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        position: u32,
    ) -> Result<()> {
        if is_head(of) {
            return self.head.setxattr(req, of, name, value, flags, position).await;
        }
        Err(refused(of))
    }

    async fn getxattr(&self, req: Request, of: u64, name: &OsStr, size: u32) -> Result<ReplyXAttr> {
        match view_of(of) {
            HEAD => self.head.getxattr(req, of, name, size).await,
            CONTROL => Err(errno::no_attribute()),
            _ => Box::pin(async { self.view(of).await?.getxattr(req, ino_of(of), name, size).await }).await,
        }
    }

    async fn listxattr(&self, req: Request, of: u64, size: u32) -> Result<ReplyXAttr> {
        match view_of(of) {
            HEAD => self.head.listxattr(req, of, size).await,
            CONTROL if size == 0 => Ok(ReplyXAttr::Size(0)),
            CONTROL => Ok(ReplyXAttr::Data(Bytes::new())),
            _ => Box::pin(async { self.view(of).await?.listxattr(req, ino_of(of), size).await }).await,
        }
    }

    async fn removexattr(&self, req: Request, of: u64, name: &OsStr) -> Result<()> {
        if is_head(of) { self.head.removexattr(req, of, name).await } else { Err(refused(of)) }
    }

    async fn readdir<'a>(
        &'a self,
        req: Request,
        parent: u64,
        fh: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        if !is_head(parent) {
            let entries = Box::pin(self.readdir_elsewhere(req, parent, offset)).await?;
            return Ok(ReplyDirectory { entries: Either::Left(stream::iter(entries)) });
        }
        let entries = self.head.readdir(req, parent, fh, offset).await?.entries;
        let entries = self.without_own(parent, entries, |entry| &entry.name);
        Ok(ReplyDirectory { entries: Either::Right(entries) })
    }

    async fn readdirplus<'a>(
        &'a self,
        req: Request,
        parent: u64,
        fh: u64,
        offset: u64,
        lock_owner: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>> {
        if !is_head(parent) {
            let entries = Box::pin(self.readdirplus_elsewhere(req, parent, offset)).await?;
            return Ok(ReplyDirectoryPlus { entries: Either::Left(stream::iter(entries)) });
        }
        let entries = self.head.readdirplus(req, parent, fh, offset, lock_owner).await?.entries;
        let entries = self.without_own(parent, entries, |entry| &entry.name);
        Ok(ReplyDirectoryPlus { entries: Either::Right(entries) })
    }

    async fn create(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<ReplyCreated> {
        self.check_new(parent, name)?;
        self.head.create(req, parent, name, mode, flags).await
    }

    async fn fallocate(
        &self,
        req: Request,
        of: u64,
        fh: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        if is_head(of) {
            return self.head.fallocate(req, of, fh, offset, length, mode).await;
        }
        Err(refused(of))
    }

    async fn lseek(&self, req: Request, of: u64, fh: u64, offset: u64, whence: u32) -> Result<ReplyLSeek> {
        match view_of(of) {
            HEAD => self.head.lseek(req, of, fh, offset, whence).await,
            CONTROL => Ok(ReplyLSeek { offset: self.control()?.seek(ino_of(of), offset, whence)? }),
            _ => {
                Box::pin(async { self.view(of).await?.lseek(req, ino_of(of), fh, offset, whence).await })
                    .await
            }
        }
    }

    async fn copy_file_range(
        &self,
        req: Request,
        of: u64,
        fh_in: u64,
        off_in: u64,
        to: u64,
        fh_out: u64,
        off_out: u64,
        length: u64,
        flags: u64,
    ) -> Result<ReplyCopyFileRange> {
        if !is_head(to) && view_of(to) != CONTROL {
            return Err(errno::read_only());
        }
        if !is_head(of) || !is_head(to) {
            // The kernel reads and writes instead.
            return Err(errno::crosses());
        }
        self.head.copy_file_range(req, of, fh_in, off_in, to, fh_out, off_out, length, flags).await
    }

    async fn getlk(
        &self,
        req: Request,
        of: u64,
        fh: u64,
        lock_owner: u64,
        start: u64,
        end: u64,
        kind: u32,
        pid: u32,
    ) -> Result<ReplyLock> {
        self.head.getlk(req, of, fh, lock_owner, start, end, kind, pid).await
    }

    async fn setlk(
        &self,
        req: Request,
        of: u64,
        fh: u64,
        lock_owner: u64,
        start: u64,
        end: u64,
        kind: u32,
        pid: u32,
        block: bool,
    ) -> Result<()> {
        self.head.setlk(req, of, fh, lock_owner, start, end, kind, pid, block).await
    }
}
