//! Inodes and names in memory, under one lock of the caller's.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::SystemTime;

use fuse3::raw::reply::FileAttr;
use fuse3::{FileType, Result, SetAttr, Timestamp};
use tarbox_types::fuse::SETATTR_KILL_SUIDGID;

/// What an inode is.
#[derive(Debug)]
pub(super) enum Content {
    File(Vec<u8>),
    Directory(Directory),
    Link(OsString),
    Special(FileType, u32),
}

impl Content {
    pub(super) fn directory() -> Self {
        Self::Directory(Directory { next_cookie: 3, ..Directory::default() })
    }

    fn kind(&self) -> FileType {
        match self {
            Self::File(_) => FileType::RegularFile,
            Self::Directory(_) => FileType::Directory,
            Self::Link(_) => FileType::Symlink,
            Self::Special(kind, _) => *kind,
        }
    }
}

/// Names, and their order: a cookie is never used twice.
#[derive(Debug, Default)]
pub(super) struct Directory {
    parent: u64,
    names: HashMap<OsString, (u64, u64)>,
    order: BTreeMap<u64, OsString>,
    next_cookie: u64,
}

#[derive(Debug)]
struct Inode {
    attr: FileAttr,
    content: Content,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

/// All inodes.
#[derive(Debug)]
pub(super) struct Tree {
    inodes: HashMap<u64, Inode>,
    next: u64,
}

fn fail<T>(errno: i32) -> Result<T> {
    Err(errno.into())
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut tree = Self { inodes: HashMap::new(), next: 2 };
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let mut root = Inode::new(1, 0o755, owner, Content::directory());
        root.attr.nlink = 2;
        if let Content::Directory(directory) = &mut root.content {
            directory.parent = 1;
        }
        tree.inodes.insert(1, root);
        tree
    }

    fn inode(&self, ino: u64) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(libc::ENOENT.into())
    }

    fn inode_mut(&mut self, ino: u64) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(libc::ENOENT.into())
    }

    fn directory(&self, ino: u64) -> Result<&Directory> {
        match &self.inode(ino)?.content {
            Content::Directory(directory) => Ok(directory),
            _ => fail(libc::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, ino: u64) -> Result<&mut Directory> {
        let inode = self.inode_mut(ino)?;
        (inode.attr.mtime, inode.attr.ctime) = (now(), now());
        match &mut inode.content {
            Content::Directory(directory) => Ok(directory),
            _ => fail(libc::ENOTDIR),
        }
    }

    pub(super) fn attr(&self, ino: u64) -> Result<FileAttr> {
        Ok(self.inode(ino)?.attr)
    }

    pub(super) fn child(&self, parent: u64, name: &OsStr) -> Result<u64> {
        self.directory(parent)?.names.get(name).map(|(ino, _)| *ino).ok_or(libc::ENOENT.into())
    }

    pub(super) fn is_named(&self, ino: u64, name: &str) -> bool {
        self.child(1, OsStr::new(name)).is_ok_and(|found| found == ino)
    }

    pub(super) fn add_nameless(
        &mut self,
        _parent: u64,
        mode: u32,
        owner: (u32, u32),
        content: Content,
    ) -> Result<u64> {
        let ino = self.next;
        self.next += 1;
        let mut inode = Inode::new(ino, mode, owner, content);
        inode.attr.nlink = 0;
        self.inodes.insert(ino, inode);
        Ok(ino)
    }

    pub(super) fn add(
        &mut self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        owner: (u32, u32),
        content: Content,
    ) -> Result<u64> {
        if name.len() > 255 {
            return fail(libc::ENAMETOOLONG);
        }
        if self.child(parent, name).is_ok() {
            return fail(libc::EEXIST);
        }
        let ino = self.add_nameless(parent, mode, owner, content)?;
        self.attach(parent, name, ino)?;
        if self.attr(ino)?.kind == FileType::Directory {
            self.inode_mut(ino)?.attr.nlink = 2;
        }
        Ok(ino)
    }

    fn attach(&mut self, parent: u64, name: &OsStr, ino: u64) -> Result<()> {
        let directory = self.directory_mut(parent)?;
        let cookie = directory.next_cookie;
        directory.next_cookie += 1;
        directory.names.insert(name.to_owned(), (ino, cookie));
        directory.order.insert(cookie, name.to_owned());
        let inode = self.inode_mut(ino)?;
        inode.attr.nlink += 1;
        inode.attr.ctime = now();
        if let Content::Directory(moved) = &mut inode.content {
            moved.parent = parent;
            inode.attr.nlink = 2;
            self.inode_mut(parent)?.attr.nlink += 1;
        }
        Ok(())
    }

    fn detach(&mut self, parent: u64, name: &OsStr) -> Result<u64> {
        let directory = self.directory_mut(parent)?;
        let Some((ino, cookie)) = directory.names.remove(name) else { return fail(libc::ENOENT) };
        directory.order.remove(&cookie);
        let inode = self.inode_mut(ino)?;
        inode.attr.nlink -= 1;
        inode.attr.ctime = now();
        if inode.attr.kind == FileType::Directory {
            inode.attr.nlink = 0;
            self.inode_mut(parent)?.attr.nlink -= 1;
        }
        Ok(ino)
    }

    pub(super) fn link(&mut self, ino: u64, parent: u64, name: &OsStr) -> Result<()> {
        if self.child(parent, name).is_ok() {
            return fail(libc::EEXIST);
        }
        self.attach(parent, name, ino)
    }

    /// Inodes without a name stay: who still has them open is not kept here.
    pub(super) fn remove(&mut self, parent: u64, name: &OsStr, directory: bool) -> Result<()> {
        let ino = self.child(parent, name)?;
        match (&self.inode(ino)?.content, directory) {
            (Content::Directory(removed), true) if !removed.names.is_empty() => fail(libc::ENOTEMPTY),
            (Content::Directory(_), false) => fail(libc::EISDIR),
            (Content::Directory(_), true) => self.detach(parent, name).map(drop),
            (_, true) => fail(libc::ENOTDIR),
            (_, false) => self.detach(parent, name).map(drop),
        }
    }

    pub(super) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<()> {
        let ino = self.child(from.0, from.1)?;
        let target = self.child(to.0, to.1).ok();
        if flags == libc::RENAME_EXCHANGE {
            let Some(other) = target else { return fail(libc::ENOENT) };
            self.detach(from.0, from.1)?;
            self.detach(to.0, to.1)?;
            self.attach(to.0, to.1, ino)?;
            return self.attach(from.0, from.1, other);
        }
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return fail(libc::EINVAL);
        }
        if let Some(target) = target {
            if flags & libc::RENAME_NOREPLACE != 0 {
                return fail(libc::EEXIST);
            }
            if target == ino {
                return Ok(());
            }
            self.remove(to.0, to.1, self.attr(target)?.kind == FileType::Directory)?;
        }
        self.detach(from.0, from.1)?;
        self.attach(to.0, to.1, ino)
    }

    pub(super) fn link_target(&self, ino: u64) -> Result<Vec<u8>> {
        match &self.inode(ino)?.content {
            Content::Link(target) => Ok(target.clone().into_vec()),
            _ => fail(libc::EINVAL),
        }
    }

    pub(super) fn change(&mut self, ino: u64, change: &SetAttr) -> Result<()> {
        if let Some(size) = change.size {
            self.resize(ino, size)?;
        }
        if change.uid.is_some() || change.gid.is_some() || change.lock_owner == Some(SETATTR_KILL_SUIDGID) {
            self.kill_privileges(ino)?;
        }
        let attr = &mut self.inode_mut(ino)?.attr;
        attr.perm = change.mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        attr.atime = change.atime.unwrap_or(attr.atime);
        attr.mtime = change.mtime.unwrap_or(attr.mtime);
        attr.ctime = now();
        Ok(())
    }

    /// Clears what makes a program run as its owner: with `FUSE_HANDLE_KILLPRIV_V2` that is the file system's duty.
    pub(super) fn kill_privileges(&mut self, ino: u64) -> Result<()> {
        let attr = &mut self.inode_mut(ino)?.attr;
        if attr.kind == FileType::RegularFile {
            // Without the group's right to execute, set-group-id means something else.
            let group = if attr.perm & 0o010 == 0 { 0 } else { 0o2000 };
            attr.perm &= !(0o4000 | group);
        }
        Ok(())
    }

    pub(super) fn extend(&mut self, ino: u64, size: u64) -> Result<()> {
        if size > self.attr(ino)?.size { self.resize(ino, size) } else { Ok(()) }
    }

    fn resize(&mut self, ino: u64, size: u64) -> Result<()> {
        if size > 1 << 30 {
            return fail(libc::EFBIG);
        }
        let inode = self.inode_mut(ino)?;
        if let Content::File(bytes) = &mut inode.content {
            bytes.resize(size as usize, 0);
        }
        inode.set_size(size);
        Ok(())
    }

    pub(super) fn read(&self, ino: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let Content::File(bytes) = &self.inode(ino)?.content else { return fail(libc::EISDIR) };
        let start = bytes.len().min(offset as usize);
        let end = bytes.len().min(start + size as usize);
        Ok(bytes[start..end].to_vec())
    }

    pub(super) fn write(&mut self, ino: u64, offset: u64, data: &[u8], discard: bool) -> Result<()> {
        let end = offset + data.len() as u64;
        let inode = self.inode_mut(ino)?;
        let size = inode.attr.size.max(end);
        inode.set_size(size);
        let Content::File(bytes) = &mut inode.content else { return fail(libc::EISDIR) };
        if !discard {
            bytes.resize(size as usize, 0);
            bytes[offset as usize..end as usize].copy_from_slice(data);
        }
        Ok(())
    }

    pub(super) fn set_xattr(&mut self, ino: u64, name: &OsStr, value: &[u8], flags: u32) -> Result<()> {
        let xattrs = &mut self.inode_mut(ino)?.xattrs;
        match (flags as i32, xattrs.contains_key(name)) {
            (libc::XATTR_CREATE, true) => return fail(libc::EEXIST),
            (libc::XATTR_REPLACE, false) => return fail(libc::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_owned(), value.to_vec());
        Ok(())
    }

    pub(super) fn xattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.inode(ino)?.xattrs.get(name).cloned().ok_or(libc::ENODATA.into())
    }

    pub(super) fn xattr_names(&self, ino: u64) -> Result<Vec<u8>> {
        let names = self.inode(ino)?.xattrs.keys();
        Ok(names.flat_map(|name| name.as_bytes().iter().copied().chain([0])).collect())
    }

    pub(super) fn remove_xattr(&mut self, ino: u64, name: &OsStr) -> Result<()> {
        self.inode_mut(ino)?.xattrs.remove(name).map(drop).ok_or(libc::ENODATA.into())
    }

    /// Entries behind `cookie`, each with the cookie of the next.
    pub(super) fn list(&self, ino: u64, cookie: u64, most: usize) -> Result<Vec<(OsString, FileAttr, u64)>> {
        let directory = self.directory(ino)?;
        let dots = [(1, ".", ino), (2, "..", directory.parent)];
        let dots = dots.into_iter().map(|(at, name, ino)| (at, OsString::from(name), ino));
        let names = directory
            .order
            .range(cookie + 1..)
            .map(|(at, name)| (*at, name.clone(), directory.names[name].0));
        let entries = dots.filter(|(at, ..)| *at > cookie).chain(names).take(most);
        entries.map(|(at, name, ino)| Ok((name, self.attr(ino)?, at))).collect()
    }
}

impl Inode {
    fn new(ino: u64, mode: u32, (uid, gid): (u32, u32), content: Content) -> Self {
        let rdev = if let Content::Special(_, rdev) = content { rdev } else { 0 };
        let time = now();
        let attr = FileAttr {
            ino,
            size: if let Content::Link(target) = &content { target.len() as u64 } else { 0 },
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            kind: content.kind(),
            perm: mode as u16,
            nlink: 0,
            uid,
            gid,
            rdev,
            blksize: 4096,
        };
        Self { attr, content, xattrs: BTreeMap::new() }
    }

    fn set_size(&mut self, size: u64) {
        self.attr.size = size;
        self.attr.blocks = size.div_ceil(512);
        (self.attr.mtime, self.attr.ctime) = (now(), now());
    }
}
