//! One operation to one call of the file system: the only place that knows both sides.

use std::pin::pin;
use std::time::SystemTime;

use fuse3::raw::Filesystem;
use fuse3::raw::Request;
use fuse3::{Errno, Result, SetAttr, Timestamp};
use futures_util::StreamExt;
use tarbox_types::fuse::{ACL_KILL_SGID, O_TMPFILE_BITS, SETATTR_KILL_SUIDGID, UMASK_UNAPPLIED, pack_umask};

use crate::abi::{fattr, init};
use crate::decode::{CopyIn, Frame, Operation, ReadIn, SetattrIn};
use crate::encode::{EntryList, Reply};
use crate::init::SavedInit;

/// The caller as `fuse3` describes it; a repeated request has the `unique` of the first.
pub(crate) fn caller(frame: &Frame<'_>) -> Request {
    let header = &frame.header;
    Request { unique: header.request_id(), uid: header.uid, gid: header.gid, pid: header.pid }
}

/// Calls the file system. Operations without a reply give [`Reply::Empty`].
///
/// INIT, INTERRUPT and DESTROY are the session's own business and not expected here.
pub(crate) async fn call<F>(fs: &F, agreed: &SavedInit, frame: &Frame<'_>) -> Result<Reply>
where
    F: Filesystem + Sync,
{
    let req = caller(frame);
    let node = frame.header.nodeid;
    let operation = frame.operation().map_err(|_| Errno::from(libc::EIO))?;
    let unmasked = agreed.has(init::DONT_MASK);
    Ok(match operation {
        Operation::Lookup { name } => fs.lookup(req, node, name).await?.into(),
        Operation::Forget { nlookup } => {
            fs.forget(req, node, nlookup).await;
            Reply::Empty
        }
        Operation::Getattr { fh, flags } => fs.getattr(req, node, fh, flags).await?.into(),
        Operation::Setattr(change) => fs.setattr(req, node, change.handle(), set_attr(&change)).await?.into(),
        Operation::Readlink => fs.readlink(req, node).await?.into(),
        Operation::Symlink { name, target } => fs.symlink(req, node, name, target).await?.into(),
        Operation::Mknod { name, mode, rdev, umask } => {
            let mode = if unmasked { pack_umask(mode, umask) } else { mode };
            fs.mknod(req, node, name, mode, rdev).await?.into()
        }
        Operation::Mkdir { name, mode, umask } => {
            let umask = if unmasked { umask | UMASK_UNAPPLIED } else { umask };
            fs.mkdir(req, node, name, mode, umask).await?.into()
        }
        Operation::Unlink { name } => fs.unlink(req, node, name).await?.into(),
        Operation::Rmdir { name } => fs.rmdir(req, node, name).await?.into(),
        Operation::Rename { name, new_parent, new_name } => {
            fs.rename(req, node, name, new_parent, new_name).await?.into()
        }
        Operation::Rename2 { name, new_parent, new_name, flags } => {
            fs.rename2(req, node, name, new_parent, new_name, flags).await?.into()
        }
        Operation::Link { inode, new_name } => fs.link(req, inode, node, new_name).await?.into(),
        Operation::Open { flags } => fs.open(req, node, flags).await?.into(),
        Operation::Opendir { flags } => fs.opendir(req, node, flags).await?.into(),
        Operation::Read(read) => fs.read(req, node, read.fh, read.offset, read.size).await?.into(),
        Operation::Readdir(read) => readdir(fs, req, node, &read).await?,
        Operation::Readdirplus(read) => readdirplus(fs, req, node, &read).await?,
        Operation::Write { fh, offset, data, write_flags, flags } => {
            fs.write(req, node, fh, offset, data, write_flags, flags).await?.into()
        }
        Operation::Statfs => fs.statfs(req, node).await?.into(),
        Operation::Release { fh, flags, lock_owner, flush } => {
            fs.release(req, node, fh, flags, lock_owner, flush).await?.into()
        }
        Operation::Releasedir { fh, flags } => fs.releasedir(req, node, fh, flags).await?.into(),
        Operation::Fsync { fh, datasync } => fs.fsync(req, node, fh, datasync).await?.into(),
        Operation::Fsyncdir { fh, datasync } => fs.fsyncdir(req, node, fh, datasync).await?.into(),
        Operation::Setxattr { name, value, flags, setxattr_flags } => {
            fs.setxattr(req, node, name, value, flags, setxattr_flags & ACL_KILL_SGID).await?.into()
        }
        Operation::Getxattr { name, size } => fs.getxattr(req, node, name, size).await?.into(),
        Operation::Listxattr { size } => fs.listxattr(req, node, size).await?.into(),
        Operation::Removexattr { name } => fs.removexattr(req, node, name).await?.into(),
        Operation::Flush { fh, lock_owner } => fs.flush(req, node, fh, lock_owner).await?.into(),
        Operation::Getlk(lock) => {
            fs.getlk(req, node, lock.fh, lock.owner, lock.start, lock.end, lock.kind, lock.pid).await?.into()
        }
        Operation::Setlk { lock, block } => fs
            .setlk(req, node, lock.fh, lock.owner, lock.start, lock.end, lock.kind, lock.pid, block)
            .await?
            .into(),
        Operation::Access { mask } => fs.access(req, node, mask).await?.into(),
        Operation::Create { name, mode, umask, flags, tmpfile } => {
            let mode = if unmasked { pack_umask(mode, umask) } else { mode };
            let flags = if tmpfile { flags | O_TMPFILE_BITS } else { flags & !O_TMPFILE_BITS };
            fs.create(req, node, name, mode, flags).await?.into()
        }
        Operation::Bmap { block, blocksize } => fs.bmap(req, node, blocksize, block).await?.into(),
        Operation::BatchForget(forgets) => {
            fs.batch_forget(req, &forgets.to_vec()).await;
            Reply::Empty
        }
        Operation::Fallocate { fh, offset, length, mode } => {
            fs.fallocate(req, node, fh, offset, length, mode).await?.into()
        }
        Operation::Lseek { fh, offset, whence } => fs.lseek(req, node, fh, offset, whence).await?.into(),
        Operation::CopyFileRange(copy) => copy_file_range(fs, req, node, &copy).await?,
        // The answer to a RETRIEVE, which is never sent.
        Operation::NotifyReply => Reply::Empty,
        Operation::Init(_) | Operation::Interrupt { .. } | Operation::Destroy | Operation::Unsupported => {
            return Err(libc::ENOSYS.into());
        }
    })
}

fn set_attr(change: &SetattrIn) -> SetAttr {
    let time = |now: u32, given: u32, (sec, nsec): (i64, u32)| {
        if change.has(now) {
            Some(SystemTime::now().into())
        } else {
            change.has(given).then(|| Timestamp::new(sec, nsec))
        }
    };
    let lock_owner = change.has(fattr::LOCKOWNER).then_some(change.lock_owner);
    SetAttr {
        mode: change.has(fattr::MODE).then_some(change.mode),
        uid: change.has(fattr::UID).then_some(change.uid),
        gid: change.has(fattr::GID).then_some(change.gid),
        size: change.has(fattr::SIZE).then_some(change.size),
        lock_owner: if change.has(fattr::KILL_SUIDGID) { Some(SETATTR_KILL_SUIDGID) } else { lock_owner },
        atime: time(fattr::ATIME_NOW, fattr::ATIME, change.atime),
        mtime: time(fattr::MTIME_NOW, fattr::MTIME, change.mtime),
        ctime: time(0, fattr::CTIME, change.ctime),
    }
}

async fn readdir<F: Filesystem + Sync>(fs: &F, req: Request, node: u64, read: &ReadIn) -> Result<Reply> {
    let directory = fs.readdir(req, node, read.fh, read.offset as i64).await?;
    let mut entries = pin!(directory.entries);
    let mut list = EntryList::new(read.size);
    while let Some(entry) = entries.next().await {
        if !list.push(&entry?) {
            break;
        }
    }
    Ok(Reply::Directory(list.into_bytes()))
}

async fn readdirplus<F: Filesystem + Sync>(fs: &F, req: Request, node: u64, read: &ReadIn) -> Result<Reply> {
    let directory = fs.readdirplus(req, node, read.fh, read.offset, read.lock_owner).await?;
    let mut entries = pin!(directory.entries);
    let mut list = EntryList::new(read.size);
    while let Some(entry) = entries.next().await {
        if !list.push_plus(&entry?) {
            break;
        }
    }
    Ok(Reply::Directory(list.into_bytes()))
}

async fn copy_file_range<F>(fs: &F, req: Request, node: u64, copy: &CopyIn) -> Result<Reply>
where
    F: Filesystem + Sync,
{
    // The narrow reply has 32 bits, and the kernel takes a short copy for what it is.
    let most = if copy.wide { u64::MAX } else { u64::from(u32::MAX) & !4095 };
    let length = copy.length.min(most);
    let CopyIn { fh_in, off_in, inode_out, fh_out, off_out, flags, .. } = *copy;
    let copied =
        fs.copy_file_range(req, node, fh_in, off_in, inode_out, fh_out, off_out, length, flags).await?.copied;
    Ok(if copy.wide {
        Reply::Copied(copied)
    } else {
        Reply::Write(fuse3::raw::reply::ReplyWrite { written: copied.min(most) as u32 })
    })
}
