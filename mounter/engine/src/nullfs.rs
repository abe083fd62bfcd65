//! A file system in memory that keeps nothing: what the engine's tests and benchmarks serve.
//!
//! Reads of a file named `wait` do not return before [`MemFs::open_gate`], or a signal to the caller.
//! Looking up `panic` panics.

pub mod cells;
mod tree;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use fuse3::raw::reply::{
    DirectoryEntry, DirectoryEntryPlus, ReplyAttr, ReplyCopyFileRange, ReplyCreated, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyInit, ReplyLSeek, ReplyLock, ReplyOpen, ReplyStatFs,
    ReplyWrite, ReplyXAttr,
};
use fuse3::raw::{Filesystem, Request};
use fuse3::{FileType, Result, SetAttr};
use futures_util::stream::{self, Stream};
use parking_lot::Mutex;
use tarbox_types::fuse::{O_TMPFILE_BITS, UMASK_UNAPPLIED, WRITE_KILL_SUIDGID, unpack_umask};
use tokio::sync::Notify;

use tree::{Content, Tree};

const MAX_WRITE: NonZeroU32 = NonZeroU32::new(1 << 20).expect("it is not zero");

/// How a [`MemFs`] behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemFsOptions {
    /// How long the kernel may keep names and attributes.
    pub ttl: Duration,
    /// Answer ENOSYS to OPEN and OPENDIR.
    pub stateless: bool,
    /// Forget what is written (its length counts), for throughput without memory.
    pub discard: bool,
}

impl Default for MemFsOptions {
    fn default() -> Self {
        Self { ttl: Duration::ZERO, stateless: true, discard: false }
    }
}

/// The file system.
#[derive(Debug)]
pub struct MemFs {
    options: MemFsOptions,
    tree: Mutex<Tree>,
    gate: Mutex<Gate>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Gate {
    open: bool,
    interrupted: HashSet<u64>,
    destroyed: u32,
}

impl MemFs {
    /// An empty file system.
    #[must_use]
    pub fn new(options: MemFsOptions) -> Self {
        Self { options, tree: Mutex::new(Tree::new()), gate: Mutex::default(), changed: Notify::new() }
    }

    /// Lets the reads of `wait` return.
    pub fn open_gate(&self) {
        self.gate.lock().open = true;
        self.changed.notify_waiters();
    }

    /// How often `destroy` was called.
    #[must_use]
    pub fn destroyed(&self) -> u32 {
        self.gate.lock().destroyed
    }

    /// Changes a file's content behind the kernel's back.
    pub fn overwrite(&self, name: &str, content: &[u8]) -> Option<u64> {
        let mut tree = self.tree.lock();
        let ino = tree.child(1, OsStr::new(name)).ok()?;
        tree.write(ino, 0, content, false).ok().map(|()| ino)
    }

    async fn pass_gate(&self, unique: u64) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut gate = self.gate.lock();
                if gate.interrupted.remove(&unique) {
                    return Err(libc::EINTR.into());
                }
                if gate.open {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn entry(&self, tree: &Tree, ino: u64) -> Result<ReplyEntry> {
        Ok(ReplyEntry { ttl: self.options.ttl, attr: tree.attr(ino)?, generation: 0 })
    }

    fn attr(&self, tree: &Tree, ino: u64) -> Result<ReplyAttr> {
        Ok(ReplyAttr { ttl: self.options.ttl, attr: tree.attr(ino)? })
    }

    fn open_reply(&self) -> Result<ReplyOpen> {
        if self.options.stateless { Err(libc::ENOSYS.into()) } else { Ok(ReplyOpen { fh: 0, flags: 0 }) }
    }

    fn add(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        content: Content,
    ) -> Result<ReplyEntry> {
        let mut tree = self.tree.lock();
        let ino = tree.add(parent, name, mode, (req.uid, req.gid), content)?;
        self.entry(&tree, ino)
    }
}

/// The permission bits, with the umask applied if the kernel left that to us.
fn permissions(mode: u32) -> u32 {
    let (mode, umask) = unpack_umask(mode);
    mode & 0o7777 & !umask.unwrap_or(0)
}

fn kind_of(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// A list of attributes or a value, as `getxattr(2)` wants it.
fn xattr(bytes: Vec<u8>, size: u32) -> Result<ReplyXAttr> {
    match size as usize {
        0 => Ok(ReplyXAttr::Size(bytes.len() as u32)),
        room if room < bytes.len() => Err(libc::ERANGE.into()),
        _ => Ok(ReplyXAttr::Data(bytes.into())),
    }
}

impl Filesystem for MemFs {
    async fn init(&self, _req: Request) -> Result<ReplyInit> {
        // fuse3's own session allocates a buffer of that length.
        Ok(ReplyInit::new(MAX_WRITE))
    }

    async fn destroy(&self, _req: Request) {
        self.gate.lock().destroyed += 1;
    }

    async fn lookup(&self, _req: Request, parent: u64, name: &OsStr) -> Result<ReplyEntry> {
        assert!(name != "panic", "as asked for");
        let tree = self.tree.lock();
        let ino = tree.child(parent, name)?;
        self.entry(&tree, ino)
    }

    async fn getattr(&self, _req: Request, inode: u64, _fh: Option<u64>, _flags: u32) -> Result<ReplyAttr> {
        self.attr(&self.tree.lock(), inode)
    }

    async fn setattr(
        &self,
        _req: Request,
        inode: u64,
        _fh: Option<u64>,
        change: SetAttr,
    ) -> Result<ReplyAttr> {
        let mut tree = self.tree.lock();
        tree.change(inode, &change)?;
        self.attr(&tree, inode)
    }

    async fn readlink(&self, _req: Request, inode: u64) -> Result<ReplyData> {
        Ok(Bytes::from(self.tree.lock().link_target(inode)?).into())
    }

    async fn symlink(&self, req: Request, parent: u64, name: &OsStr, link: &OsStr) -> Result<ReplyEntry> {
        self.add(req, parent, name, 0o777, Content::Link(link.to_owned()))
    }

    async fn mknod(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<ReplyEntry> {
        let content = match kind_of(mode) {
            FileType::RegularFile => Content::File(Vec::new()),
            kind => Content::Special(kind, rdev),
        };
        self.add(req, parent, name, permissions(mode), content)
    }

    async fn mkdir(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<ReplyEntry> {
        let applied = if umask & UMASK_UNAPPLIED != 0 { umask & 0o7777 } else { 0 };
        self.add(req, parent, name, mode & 0o7777 & !applied, Content::directory())
    }

    async fn unlink(&self, _req: Request, parent: u64, name: &OsStr) -> Result<()> {
        self.tree.lock().remove(parent, name, false)
    }

    async fn rmdir(&self, _req: Request, parent: u64, name: &OsStr) -> Result<()> {
        self.tree.lock().remove(parent, name, true)
    }

    async fn rename(&self, req: Request, parent: u64, name: &OsStr, to: u64, new_name: &OsStr) -> Result<()> {
        self.rename2(req, parent, name, to, new_name, 0).await
    }

    async fn rename2(
        &self,
        _req: Request,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.tree.lock().rename((parent, name), (new_parent, new_name), flags)
    }

    async fn link(&self, _req: Request, inode: u64, new_parent: u64, new_name: &OsStr) -> Result<ReplyEntry> {
        let mut tree = self.tree.lock();
        tree.link(inode, new_parent, new_name)?;
        self.entry(&tree, inode)
    }

    async fn open(&self, _req: Request, inode: u64, flags: u32) -> Result<ReplyOpen> {
        let reply = self.open_reply()?;
        if flags & libc::O_TRUNC as u32 != 0 {
            self.tree.lock().change(inode, &SetAttr { size: Some(0), ..SetAttr::default() })?;
        }
        Ok(reply)
    }

    async fn read(&self, req: Request, inode: u64, _fh: u64, offset: u64, size: u32) -> Result<ReplyData> {
        if self.tree.lock().is_named(inode, "wait") {
            self.pass_gate(req.unique).await?;
        }
        Ok(Bytes::from(self.tree.lock().read(inode, offset, size)?).into())
    }

    async fn write(
        &self,
        _req: Request,
        inode: u64,
        _fh: u64,
        offset: u64,
        data: &[u8],
        write_flags: u32,
        _flags: u32,
    ) -> Result<ReplyWrite> {
        let mut tree = self.tree.lock();
        tree.write(inode, offset, data, self.options.discard)?;
        if write_flags & WRITE_KILL_SUIDGID != 0 {
            tree.kill_privileges(inode)?;
        }
        Ok(ReplyWrite { written: data.len() as u32 })
    }

    async fn statfs(&self, _req: Request, _inode: u64) -> Result<ReplyStatFs> {
        let (blocks, files) = (1 << 20, 1 << 20);
        let (bsize, frsize, namelen) = (4096, 4096, 255);
        Ok(ReplyStatFs { blocks, bfree: blocks, bavail: blocks, files, ffree: files, bsize, namelen, frsize })
    }

    async fn release(&self, _: Request, _: u64, _: u64, _: u32, _: u64, _: bool) -> Result<()> {
        Ok(())
    }

    async fn setxattr(
        &self,
        _req: Request,
        inode: u64,
        name: &OsStr,
        value: &[u8],
        flags: u32,
        _position: u32,
    ) -> Result<()> {
        self.tree.lock().set_xattr(inode, name, value, flags)
    }

    async fn getxattr(&self, _req: Request, inode: u64, name: &OsStr, size: u32) -> Result<ReplyXAttr> {
        xattr(self.tree.lock().xattr(inode, name)?, size)
    }

    async fn listxattr(&self, _req: Request, inode: u64, size: u32) -> Result<ReplyXAttr> {
        xattr(self.tree.lock().xattr_names(inode)?, size)
    }

    async fn removexattr(&self, _req: Request, inode: u64, name: &OsStr) -> Result<()> {
        self.tree.lock().remove_xattr(inode, name)
    }

    async fn flush(&self, _req: Request, _inode: u64, _fh: u64, _lock_owner: u64) -> Result<()> {
        if self.options.stateless { Err(libc::ENOSYS.into()) } else { Ok(()) }
    }

    async fn opendir(&self, _req: Request, _inode: u64, _flags: u32) -> Result<ReplyOpen> {
        self.open_reply()
    }

    async fn readdir<'a>(
        &'a self,
        _req: Request,
        parent: u64,
        _fh: u64,
        offset: i64,
    ) -> Result<ReplyDirectory<impl Stream<Item = Result<DirectoryEntry>> + Send + 'a>> {
        let entries = self.tree.lock().list(parent, offset as u64, 4096)?;
        let entries = entries.into_iter().map(|(name, attr, offset)| {
            Ok(DirectoryEntry { inode: attr.ino, kind: attr.kind, name, offset: offset as i64 })
        });
        Ok(ReplyDirectory { entries: stream::iter(entries) })
    }

    async fn readdirplus<'a>(
        &'a self,
        _req: Request,
        parent: u64,
        _fh: u64,
        offset: u64,
        _lock_owner: u64,
    ) -> Result<ReplyDirectoryPlus<impl Stream<Item = Result<DirectoryEntryPlus>> + Send + 'a>> {
        let ttl = self.options.ttl;
        let entries = self.tree.lock().list(parent, offset, 4096)?;
        let entries = entries.into_iter().map(move |(name, attr, offset)| {
            Ok(DirectoryEntryPlus {
                inode: attr.ino,
                generation: 0,
                kind: attr.kind,
                name,
                offset: offset as i64,
                attr,
                entry_ttl: ttl,
                attr_ttl: ttl,
            })
        });
        Ok(ReplyDirectoryPlus { entries: stream::iter(entries) })
    }

    async fn fsyncdir(&self, _req: Request, _inode: u64, _fh: u64, _datasync: bool) -> Result<()> {
        Ok(())
    }

    async fn getlk(
        &self,
        _: Request,
        _: u64,
        _: u64,
        _: u64,
        start: u64,
        end: u64,
        _: u32,
        pid: u32,
    ) -> Result<ReplyLock> {
        Ok(ReplyLock { start, end, r#type: libc::F_UNLCK as u32, pid })
    }

    async fn setlk(
        &self,
        _: Request,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u32,
        _: u32,
        _: bool,
    ) -> Result<()> {
        Ok(())
    }

    async fn create(
        &self,
        req: Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: u32,
    ) -> Result<ReplyCreated> {
        let mut tree = self.tree.lock();
        let (owner, content) = ((req.uid, req.gid), Content::File(Vec::new()));
        let ino = if flags & O_TMPFILE_BITS != 0 {
            tree.add_nameless(parent, permissions(mode), owner, content)?
        } else {
            tree.add(parent, name, permissions(mode), owner, content)?
        };
        Ok(ReplyCreated { ttl: self.options.ttl, attr: tree.attr(ino)?, generation: 0, fh: 0, flags: 0 })
    }

    async fn interrupt(&self, _req: Request, unique: u64) -> Result<()> {
        self.gate.lock().interrupted.insert(unique);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn fallocate(
        &self,
        _: Request,
        inode: u64,
        _: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        if mode != 0 {
            return Err(libc::EOPNOTSUPP.into());
        }
        self.tree.lock().extend(inode, offset + length)
    }

    async fn lseek(&self, _: Request, inode: u64, _: u64, offset: u64, whence: u32) -> Result<ReplyLSeek> {
        let size = self.tree.lock().attr(inode)?.size;
        match whence as i32 {
            libc::SEEK_DATA | libc::SEEK_HOLE if offset >= size => Err(libc::ENXIO.into()),
            libc::SEEK_DATA => Ok(ReplyLSeek { offset }),
            libc::SEEK_HOLE => Ok(ReplyLSeek { offset: size }),
            _ => Err(libc::EINVAL.into()),
        }
    }

    async fn copy_file_range(
        &self,
        _req: Request,
        inode: u64,
        _fh_in: u64,
        off_in: u64,
        inode_out: u64,
        _fh_out: u64,
        off_out: u64,
        length: u64,
        _flags: u64,
    ) -> Result<ReplyCopyFileRange> {
        let mut tree = self.tree.lock();
        let bytes = tree.read(inode, off_in, u32::try_from(length).unwrap_or(u32::MAX))?;
        tree.write(inode_out, off_out, &bytes, self.options.discard)?;
        Ok(ReplyCopyFileRange { copied: bytes.len() as u64 })
    }
}
