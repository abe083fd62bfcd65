//! The inodes of the control directory: attributes, names, documents.
//!
//! They belong to the owner and the group of the tenant's root: who may read that, may read here; commands are the owner's.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use fuse3::{
    FileType, Result, SetAttr, Timestamp,
    raw::{Filesystem, Request, reply::*},
};
use tarbox_types::{Ino, ROOT_INO, fuse::DOCUMENT_BITS};
use uuid::{Builder, Uuid};

use super::{
    ControlDirectory,
    documents::code_of,
    errno,
    layout::{self, Directory, File, Found},
    node::{CONTROL, node, root_of},
};
use crate::failure::Failure;

/// How long the kernel may keep what can change: what it shows is that old at most.
pub(super) const FRESH_FOR: Duration = Duration::from_secs(1);
/// Documents do not change.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// What reads look for at most: nothing longer is kept in a document.
const READ_MAX: usize = 1 << 20;

/// A name of a directory stream.
pub(super) struct Entry {
    pub(super) name: String,
    /// Shown by readdir(3) only: the inode is made when it is looked up.
    pub(super) node: u64,
    pub(super) kind: FileType,
    /// Where the stream goes on after it.
    pub(super) cookie: u64,
}

/// Whose the tenant's root is.
struct Owner {
    attr: FileAttr,
}

impl Owner {
    fn attr(&self, node: u64, kind: FileType, perm: u16) -> FileAttr {
        FileAttr { ino: node, size: 4096, blocks: 0, kind, perm, nlink: 1, rdev: 0, ..self.attr }
    }

    fn directory(&self, directory: Directory, mtime: Timestamp) -> FileAttr {
        let attr = self.attr(node(CONTROL, directory.ino()), FileType::Directory, self.attr.perm & 0o555);
        FileAttr { nlink: 2, atime: mtime, mtime, ctime: mtime, ..attr }
    }

    fn document(&self, ino: Ino, file: File, (size, made): (u64, SystemTime)) -> FileAttr {
        let (kind, perm) = match file {
            File::Tag => (FileType::Symlink, 0o777),
            file if file.is_command() => (FileType::RegularFile, self.attr.perm & 0o444 | 0o200),
            _ => (FileType::RegularFile, self.attr.perm & 0o444),
        };
        let time = Timestamp::from(made);
        let attr = self.attr(node(CONTROL, ino), kind, perm);
        FileAttr { size, blocks: size.div_ceil(512), atime: time, mtime: time, ctime: time, ..attr }
    }
}

impl ControlDirectory {
    async fn owner(&self) -> Result<Owner> {
        let attr = self.head.getattr(Request::default(), ROOT_INO, None, 0).await?.attr;
        Ok(Owner { attr })
    }

    async fn directory(&self, directory: Directory) -> Result<FileAttr> {
        let owner = self.owner().await?;
        let mtime = match directory {
            Directory::Snapshots => self.names_changed_at().await,
            _ => owner.attr.mtime,
        };
        Ok(owner.directory(directory, mtime))
    }

    /// The control directory itself, as a name in the tenant's root.
    pub(super) async fn top(&self) -> Result<ReplyEntry> {
        let attr = self.directory(Directory::Top).await?;
        Ok(ReplyEntry { ttl: FRESH_FOR, attr, generation: 0 })
    }

    /// # Errors
    /// ENOENT, not to be remembered: a checkpoint of that name may come.
    pub(super) async fn lookup(&self, parent: Ino, name: &OsStr) -> Result<ReplyEntry> {
        let of = Directory::of_ino(parent).ok_or_else(errno::not_a_directory)?;
        if of == Directory::Snapshots {
            return self.lookup_snapshot(name.as_bytes()).await;
        }
        match layout::find(of, name.as_bytes()).ok_or_else(errno::not_found)? {
            Found::Directory(directory) => {
                let attr = self.directory(directory).await?;
                Ok(ReplyEntry { ttl: FRESH_FOR, attr, generation: 0 })
            }
            Found::File(file) => {
                let text = self.report(file).await.map_err(|failure| failed(file, &failure))?;
                self.new_document(file, &text).await
            }
        }
    }

    /// An inode of its own for a text.
    pub(super) async fn new_document(&self, file: File, text: &[u8]) -> Result<ReplyEntry> {
        let ino = self.documents.add(file.code(), text).map_err(|error| errno::of_io(&error))?;
        let attr = self.document(ino).await?.1;
        // Asked for anew each time: who opens it gets what is true then.
        Ok(ReplyEntry { ttl: Duration::ZERO, attr, generation: 0 })
    }

    async fn document(&self, ino: Ino) -> Result<(File, FileAttr)> {
        let file = File::of_code(code_of(ino)).ok_or_else(errno::stale)?;
        let looked = self.documents.look(ino).map_err(|error| errno::of_io(&error))?;
        Ok((file, self.owner().await?.document(ino, file, looked)))
    }

    pub(super) async fn getattr(&self, ino: Ino) -> Result<ReplyAttr> {
        match Directory::of_ino(ino) {
            Some(directory) => Ok(ReplyAttr { ttl: FRESH_FOR, attr: self.directory(directory).await? }),
            None => Ok(ReplyAttr { ttl: FOR_EVER, attr: self.document(ino).await?.1 }),
        }
    }

    /// Only a command can be "emptied", which is how `echo … >` begins; nothing happens by it.
    pub(super) async fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<ReplyAttr> {
        if Directory::of_ino(ino).is_some() || set.size.is_none() {
            return Err(errno::not_permitted());
        }
        if set.mode.is_some() || set.uid.is_some() || set.gid.is_some() {
            return Err(errno::not_permitted());
        }
        let (file, attr) = self.document(ino).await?;
        if !file.is_command() {
            return Err(errno::no_command());
        }
        Ok(ReplyAttr { ttl: FOR_EVER, attr: FileAttr { size: set.size.unwrap_or(0), ..attr } })
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Bytes> {
        let len = (size as usize).min(READ_MAX);
        self.documents.read(ino, offset, len).map_err(|error| errno::of_io(&error))
    }

    /// SEEK_DATA and SEEK_HOLE: no document has a hole.
    pub(super) fn seek(&self, ino: Ino, offset: u64, whence: u32) -> Result<u64> {
        let (size, _) = self.documents.look(ino).map_err(|error| errno::of_io(&error))?;
        match whence as i32 {
            _ if offset >= size => Err(errno::no_data()),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(errno::invalid()),
        }
    }

    pub(super) async fn write(&self, unique: u64, ino: Ino, data: &[u8]) -> Result<u32> {
        let file = File::of_code(code_of(ino)).filter(|_| Directory::of_ino(ino).is_none());
        let file = file.filter(|file| file.is_command()).ok_or_else(errno::no_command)?;
        let work = self.command(file, self.request(unique), data);
        let done = match file {
            // Not to be given up half way: the head may have changed.
            File::Switch => work.await,
            _ => self.head.for_caller(work).await?,
        };
        done.map_err(|failure| errno::of_failure(&failure))?;
        Ok(data.len() as u32)
    }

    /// The same for a request and its repetition, and for no other one, also not of another connection.
    fn request(&self, unique: u64) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.nonce.to_be_bytes());
        // The upper bits are those that every UUID has for its kind: no connection lives long enough to count so far.
        bytes[8..].copy_from_slice(&unique.to_be_bytes());
        Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// Names beyond a position.
    pub(super) async fn entries(&self, ino: Ino, after: u64) -> Result<Vec<Entry>> {
        let of = Directory::of_ino(ino).ok_or_else(errno::not_a_directory)?;
        let above = if of == Directory::Top { ROOT_INO } else { root_of(CONTROL) };
        let fixed = [(".", node(CONTROL, ino)), ("..", above)];
        let fixed = fixed.map(|(name, node)| (name, node, FileType::Directory));
        let named = layout::names(of).into_iter().map(|(name, found)| match found {
            Found::Directory(directory) => (name, node(CONTROL, directory.ino()), FileType::Directory),
            Found::File(file) => {
                (name, node(CONTROL, u64::from(file.code()) << DOCUMENT_BITS), FileType::RegularFile)
            }
        });
        let all = fixed.into_iter().chain(named).zip(1..);
        let mut entries: Vec<Entry> = all
            .map(|((name, node, kind), cookie)| Entry { name: name.to_owned(), node, kind, cookie })
            .collect();
        if of == Directory::Snapshots {
            entries.extend(self.snapshots().await?);
        }
        entries.retain(|entry| entry.cookie > after);
        Ok(entries)
    }

    pub(super) fn forget(&self, ino: Ino) {
        if Directory::of_ino(ino).is_none() {
            self.documents.remove(ino);
        }
    }
}

/// What a document could not be made for is said in the log; the caller has a number only.
pub(super) fn failed(file: File, failure: &Failure) -> fuse3::Errno {
    tracing::warn!(file = file.path(), reason = %failure.report(), "nothing can be read in the control directory");
    errno::of_failure(failure)
}
