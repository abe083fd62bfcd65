//! A file system whose content outlives its process: what the tests kill. Its files are those of a directory, named by
//! number; every change it makes may be made twice.
//!
//! Reads of the file `wait` do not return before the directory has a file `open`.

use std::ffi::OsStr;
use std::fs::File;
use std::num::NonZeroU32;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuse3::raw::reply::{FileAttr, ReplyAttr, ReplyData, ReplyEntry, ReplyInit, ReplyLock, ReplyWrite};
use fuse3::raw::{Filesystem, Request};
use fuse3::{FileType, Result, SetAttr};

/// The number of the file `wait`.
const WAIT: u64 = 1000;
const FIRST: u64 = 2;

/// The file system.
#[derive(Debug)]
pub struct Cells {
    directory: PathBuf,
}

impl Cells {
    /// Serves the files of `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn file(&self, inode: u64) -> Result<File> {
        let name = if inode == WAIT { "wait".to_owned() } else { (inode - FIRST).to_string() };
        Ok(File::options().read(true).write(true).open(self.directory.join(name))?)
    }

    fn attr(&self, inode: u64) -> Result<FileAttr> {
        let (kind, perm, size) = match inode {
            1 => (FileType::Directory, 0o755, 0),
            _ => (FileType::RegularFile, 0o666, self.file(inode)?.metadata()?.size()),
        };
        let time = SystemTime::UNIX_EPOCH.into();
        let (atime, mtime, ctime) = (time, time, time);
        let (blocks, nlink, uid, gid, rdev, blksize) = (0, 1, 0, 0, 0, 4096);
        Ok(FileAttr {
            ino: inode,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize,
        })
    }
}

impl Filesystem for Cells {
    async fn init(&self, _req: Request) -> Result<ReplyInit> {
        Ok(ReplyInit::new(NonZeroU32::MAX))
    }

    async fn destroy(&self, _req: Request) {}

    async fn lookup(&self, _req: Request, _parent: u64, name: &OsStr) -> Result<ReplyEntry> {
        let number = name.to_str().and_then(|name| match name {
            "wait" => Some(WAIT),
            number => number.parse::<u64>().ok().map(|number| number + FIRST).filter(|inode| *inode < WAIT),
        });
        let attr = self.attr(number.ok_or(libc::ENOENT)?)?;
        Ok(ReplyEntry { ttl: Duration::ZERO, attr, generation: 0 })
    }

    async fn getattr(&self, _req: Request, inode: u64, _fh: Option<u64>, _flags: u32) -> Result<ReplyAttr> {
        Ok(ReplyAttr { ttl: Duration::ZERO, attr: self.attr(inode)? })
    }

    async fn setattr(
        &self,
        _req: Request,
        inode: u64,
        _fh: Option<u64>,
        change: SetAttr,
    ) -> Result<ReplyAttr> {
        if let Some(size) = change.size {
            self.file(inode)?.set_len(size)?;
        }
        Ok(ReplyAttr { ttl: Duration::ZERO, attr: self.attr(inode)? })
    }

    async fn read(&self, _req: Request, inode: u64, _fh: u64, offset: u64, size: u32) -> Result<ReplyData> {
        while inode == WAIT && !self.directory.join("open").exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut bytes = vec![0; size as usize];
        let length = self.file(inode)?.read_at(&mut bytes, offset)?;
        bytes.truncate(length);
        Ok(Bytes::from(bytes).into())
    }

    async fn write(
        &self,
        _: Request,
        inode: u64,
        _: u64,
        offset: u64,
        data: &[u8],
        _: u32,
        _: u32,
    ) -> Result<ReplyWrite> {
        // Sometimes on another thread, so that kills find requests of both kinds.
        if offset.is_multiple_of(8192) {
            tokio::task::yield_now().await;
        }
        self.file(inode)?.write_all_at(data, offset)?;
        Ok(ReplyWrite { written: data.len() as u32 })
    }

    async fn getlk(
        &self,
        _: Request,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u32,
        _: u32,
    ) -> Result<ReplyLock> {
        Err(libc::ENOSYS.into())
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
        Err(libc::ENOSYS.into())
    }
}
