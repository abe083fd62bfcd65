//! Replies: a [`Reply`] to the bytes the kernel expects. Pure.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use fuse3::raw::reply::{
    DirectoryEntry, DirectoryEntryPlus, FileAttr, ReplyAttr, ReplyBmap, ReplyCreated, ReplyData, ReplyEntry,
    ReplyLSeek, ReplyLock, ReplyOpen, ReplyStatFs, ReplyWrite, ReplyXAttr,
};
use fuse3::{Errno, FileType, mode_from_kind_and_perm};
use tarbox_types::fuse::shown_ino;

use crate::abi::{self, OUT_HEADER_SIZE};

/// Any successful reply.
#[derive(Debug)]
#[allow(missing_docs)] // Variants are the reply types of `fuse3`.
pub enum Reply {
    Empty,
    Entry(ReplyEntry),
    Attr(ReplyAttr),
    Created(ReplyCreated),
    Open(ReplyOpen),
    Data(Bytes),
    Write(ReplyWrite),
    StatFs(ReplyStatFs),
    XAttr(ReplyXAttr),
    Lock(ReplyLock),
    Bmap(ReplyBmap),
    LSeek(ReplyLSeek),
    /// Bytes copied, for `FUSE_COPY_FILE_RANGE_64`.
    Copied(u64),
    /// Entries already laid out by [`EntryList`].
    Directory(Vec<u8>),
    Init(InitOut),
}

macro_rules! reply_from {
    ($($variant:ident: $reply:ty),* $(,)?) => {
        $(impl From<$reply> for Reply {
            fn from(reply: $reply) -> Self {
                Self::$variant(reply)
            }
        })*
    };
}
reply_from!(Entry: ReplyEntry, Attr: ReplyAttr, Created: ReplyCreated, Open: ReplyOpen, Write: ReplyWrite);
reply_from!(StatFs: ReplyStatFs, XAttr: ReplyXAttr, Lock: ReplyLock, Bmap: ReplyBmap, LSeek: ReplyLSeek);

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::Empty
    }
}

impl From<ReplyData> for Reply {
    fn from(reply: ReplyData) -> Self {
        Self::Data(reply.data)
    }
}

/// `struct fuse_init_out`, the fields that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct InitOut {
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u64,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
}

/// Length of the longest reply without a variable part (that to CREATE), its header included.
pub const HEAD_CAPACITY: usize = OUT_HEADER_SIZE + 128 + 16;

/// A reply as bytes: header and fixed part, then what varies.
#[derive(Debug)]
pub struct Encoded {
    head: [u8; HEAD_CAPACITY],
    head_len: usize,
    body: Body,
}

#[derive(Debug)]
enum Body {
    None,
    Shared(Bytes),
    Owned(Vec<u8>),
}

impl Encoded {
    /// Lays out the reply to `unique` (as received).
    #[must_use]
    pub fn new(unique: u64, outcome: Result<Reply, Errno>) -> Self {
        let mut encoded = Self { head: [0; HEAD_CAPACITY], head_len: 0, body: Body::None };
        let mut writer = Writer { out: &mut encoded.head, len: OUT_HEADER_SIZE };
        let mut error = 0;
        match outcome {
            Ok(reply) => encoded.body = writer.reply(reply),
            Err(errno) => error = kernel_error(errno),
        }
        encoded.head_len = writer.len;
        let total = encoded.head_len + encoded.body().len();
        let mut header = Writer { out: &mut encoded.head, len: 0 };
        header.u32(u32::try_from(total).unwrap_or(u32::MAX));
        header.u32(error as u32);
        header.u64(unique);
        encoded
    }

    /// Header and fixed part.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_len]
    }

    /// The variable part.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        match &self.body {
            Body::None => &[],
            Body::Shared(bytes) => bytes,
            Body::Owned(bytes) => bytes,
        }
    }

    /// Length of the message in bytes.
    #[must_use]
    pub fn total(&self) -> usize {
        self.head_len + self.body().len()
    }

    /// The request that is answered, as the kernel knows it.
    #[must_use]
    pub fn unique(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.head[8..16]);
        u64::from_ne_bytes(bytes)
    }

    /// Makes it the answer to `unique`.
    pub fn set_unique(&mut self, unique: u64) {
        self.head[8..16].copy_from_slice(&unique.to_ne_bytes());
    }

    /// The `error` field: 0 or a negative errno.
    #[must_use]
    pub fn error(&self) -> i32 {
        i32::from_ne_bytes([self.head[4], self.head[5], self.head[6], self.head[7]])
    }
}

/// The negative number for the reply's header. What the kernel would refuse (EINVAL, and the caller waits for ever)
/// becomes EIO.
fn kernel_error(errno: Errno) -> i32 {
    let negative: i32 = errno.into();
    if (-511..0).contains(&negative) { negative } else { -libc::EIO }
}

/// Writes numbers one after the other. The capacity is that of the longest structure, so nothing is cut off.
struct Writer<'a> {
    out: &'a mut [u8; HEAD_CAPACITY],
    len: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.out.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }

    /// Writes the fixed part and returns the variable one.
    fn reply(&mut self, reply: Reply) -> Body {
        match reply {
            Reply::Empty => {}
            Reply::Entry(entry) => self.entry(&entry),
            Reply::Attr(attr) => {
                self.u64(attr.ttl.as_secs());
                self.u32(attr.ttl.subsec_nanos());
                self.u32(0);
                self.attr(&attr.attr);
            }
            Reply::Created(created) => {
                let ReplyCreated { ttl, attr, generation, fh, flags } = created;
                self.entry(&ReplyEntry { ttl, attr, generation });
                self.open(fh, flags);
            }
            Reply::Open(opened) => self.open(opened.fh, opened.flags),
            Reply::Data(bytes) | Reply::XAttr(ReplyXAttr::Data(bytes)) => return Body::Shared(bytes),
            Reply::Write(write) => self.size(write.written),
            Reply::XAttr(ReplyXAttr::Size(size)) => self.size(size),
            Reply::StatFs(statfs) => self.statfs(&statfs),
            Reply::Lock(lock) => {
                self.u64(lock.start);
                self.u64(lock.end);
                self.u32(lock.r#type);
                self.u32(lock.pid);
            }
            Reply::Bmap(bmap) => self.u64(bmap.block),
            Reply::LSeek(seek) => self.u64(seek.offset),
            Reply::Copied(bytes) => self.u64(bytes),
            Reply::Directory(entries) => return Body::Owned(entries),
            Reply::Init(init) => self.init(&init),
        }
        Body::None
    }

    fn size(&mut self, size: u32) {
        self.u32(size);
        self.u32(0);
    }

    fn open(&mut self, fh: u64, flags: u32) {
        self.u64(fh);
        self.size(flags);
    }

    fn entry(&mut self, entry: &ReplyEntry) {
        self.entry_out(entry.attr.ino, entry.generation, entry.ttl, entry.ttl, &entry.attr);
    }

    fn entry_out(&mut self, nodeid: u64, generation: u64, entry: Duration, valid: Duration, attr: &FileAttr) {
        self.u64(nodeid);
        self.u64(generation);
        self.u64(entry.as_secs());
        self.u64(valid.as_secs());
        self.u32(entry.subsec_nanos());
        self.u32(valid.subsec_nanos());
        self.attr(attr);
    }

    fn attr(&mut self, attr: &FileAttr) {
        for number in [shown_ino(attr.ino), attr.size, attr.blocks] {
            self.u64(number);
        }
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.u64(time.sec as u64);
        }
        for time in [attr.atime, attr.mtime, attr.ctime] {
            self.u32(time.nsec);
        }
        let mode = mode_from_kind_and_perm(attr.kind, attr.perm);
        for number in [mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0] {
            self.u32(number);
        }
    }

    fn statfs(&mut self, statfs: &ReplyStatFs) {
        for number in [statfs.blocks, statfs.bfree, statfs.bavail, statfs.files, statfs.ffree] {
            self.u64(number);
        }
        for number in [statfs.bsize, statfs.namelen, statfs.frsize, 0, 0, 0, 0, 0, 0, 0] {
            self.u32(number);
        }
    }

    fn init(&mut self, init: &InitOut) {
        self.u32(abi::MAJOR);
        self.u32(init.minor);
        self.u32(init.max_readahead);
        self.u32(init.flags as u32);
        self.u16(init.max_background);
        self.u16(init.congestion_threshold);
        self.u32(init.max_write);
        self.u32(init.time_gran);
        self.u16(init.max_pages);
        self.u16(0);
        self.u32((init.flags >> 32) as u32);
        self.put(&[0; 28]);
    }
}

/// Collects directory entries until the next one would not fit.
#[derive(Debug)]
pub struct EntryList {
    bytes: Vec<u8>,
    limit: usize,
}

impl EntryList {
    /// An empty list that grows to `limit` bytes.
    #[must_use]
    pub fn new(limit: u32) -> Self {
        let limit = limit as usize;
        Self { bytes: Vec::with_capacity(limit.min(64 << 10)), limit }
    }

    /// Appends `struct fuse_dirent`; false when it no longer fits.
    pub fn push(&mut self, entry: &DirectoryEntry) -> bool {
        let name = entry.name.as_bytes();
        self.has_room(24 + name.len()) && {
            self.dirent(entry.inode, entry.offset, entry.kind, name);
            true
        }
    }

    /// Appends `struct fuse_direntplus`; false when it no longer fits.
    pub fn push_plus(&mut self, entry: &DirectoryEntryPlus) -> bool {
        let name = entry.name.as_bytes();
        self.has_room(128 + 24 + name.len()) && {
            let mut head = [0; HEAD_CAPACITY];
            let mut writer = Writer { out: &mut head, len: 0 };
            let DirectoryEntryPlus { generation, entry_ttl, attr_ttl, attr, .. } = entry;
            writer.entry_out(attr.ino, *generation, *entry_ttl, *attr_ttl, attr);
            let len = writer.len;
            self.bytes.extend_from_slice(&head[..len]);
            self.dirent(entry.inode, entry.offset, entry.kind, name);
            true
        }
    }

    /// The entries' bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn has_room(&self, len: usize) -> bool {
        self.bytes.len() + len.next_multiple_of(8) <= self.limit
    }

    fn dirent(&mut self, inode: u64, offset: i64, kind: FileType, name: &[u8]) {
        self.bytes.extend_from_slice(&inode.to_ne_bytes());
        self.bytes.extend_from_slice(&offset.to_ne_bytes());
        self.bytes.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_ne_bytes());
        self.bytes.extend_from_slice(&(mode_from_kind_and_perm(kind, 0) >> 12).to_ne_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

#[cfg(test)]
mod tests;
