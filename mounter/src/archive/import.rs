//! An archive unpacked into a file system of this process, without a mount.

use std::{collections::HashMap, ffi::OsStr, io::Read, ops::Range, os::unix::ffi::OsStrExt};

use fuse3::{
    Errno, SetAttr, Timestamp,
    raw::{Filesystem, Request},
};
use tarbox_store::Time;
use tarbox_types::{ErrorKind, Ino, ROOT_INO};

use super::{Entry, Kind, Reader};
use crate::failure::Failure;

/// Bytes written at a time: what one request of the kernel would bring.
const WRITE_BYTES: usize = 1 << 20;

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Imported {
    /// Members.
    pub entries: u64,
    /// Bytes of files, holes left out.
    pub data_bytes: u64,
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// Members of types that tar has and file systems have not.
    pub skipped: Vec<String>,
}

/// Unpacks into `file_system`.
pub struct Import<'i, F, R> {
    file_system: &'i F,
    reader: Reader<R>,
    /// Directories seen.
    directories: HashMap<Vec<u8>, Ino>,
    /// Directories whose attributes are set at the end: what is made in them changes their times, and takes over
    /// their default ACL.
    unfinished: Vec<(Ino, Entry)>,
    done: Imported,
    progress: &'i (dyn Fn(&Imported) + Sync),
    buffer: Vec<u8>,
}

/// As root: the archive's owners are set.
fn request() -> Request {
    Request { unique: 0, uid: 0, gid: 0, pid: std::process::id() }
}

fn failure(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Failure {
    let path = String::from_utf8_lossy(path).into_owned();
    move |errno| Failure::Io { doing: format!("{doing} `{path}`"), source: errno.into() }
}

fn is(errno: &Errno, number: i32) -> bool {
    let error: std::io::Error = (*errno).into();
    error.raw_os_error() == Some(number)
}

fn split(path: &[u8]) -> (&[u8], &OsStr) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], OsStr::from_bytes(&path[at + 1..])),
        None => (&[], OsStr::from_bytes(path)),
    }
}

fn timestamp(time: Time) -> Timestamp {
    Timestamp::new(time.sec, time.nsec)
}

impl<'i, F: Filesystem + Sync, R: Read> Import<'i, F, R> {
    /// Begins to unpack what `input` holds.
    pub fn new(file_system: &'i F, input: R, progress: &'i (dyn Fn(&Imported) + Sync)) -> Self {
        Self {
            file_system,
            reader: Reader::new(input),
            directories: HashMap::from([(Vec::new(), ROOT_INO)]),
            unfinished: Vec::new(),
            done: Imported::default(),
            progress,
            buffer: vec![0; WRITE_BYTES],
        }
    }

    /// Unpacks everything.
    ///
    /// # Errors
    /// Where the archive is damaged or the file system refuses: the tenant is full, for instance.
    pub async fn run(mut self) -> Result<Imported, Failure> {
        while let Some(entry) = self.reader.next_entry()? {
            self.member(entry).await?;
            self.done.entries += 1;
            self.report();
        }
        for (ino, entry) in std::mem::take(&mut self.unfinished) {
            self.attributes(ino, &entry).await?;
        }
        self.report();
        self.done.skipped = self.reader.skipped().to_vec();
        Ok(self.done)
    }

    fn report(&mut self) {
        self.done.archive_bytes = self.reader.offset();
        (self.progress)(&self.done);
    }

    async fn member(&mut self, entry: Entry) -> Result<(), Failure> {
        if entry.kind == Kind::Directory {
            let ino = self.directory(&entry.path).await?;
            self.unfinished.push((ino, entry));
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        if name.is_empty() {
            return Err(Failure::refused(
                ErrorKind::InvalidArgument,
                "the archive's root is not a directory",
            ));
        }
        let parent = self.directory(parent).await?;
        if let Kind::HardLink(target) = &entry.kind {
            // Of a file that is named twice, GNU tar stores the second time a link to itself.
            let ino = self.find(target).await?;
            if *target == entry.path {
                return Ok(());
            }
            self.remove(parent, name, &entry.path).await?;
            let linked = self.file_system.link(request(), ino, parent, name).await;
            linked.map_err(failure("link", &entry.path))?;
            return Ok(());
        }
        self.remove(parent, name, &entry.path).await?;
        let ino = self.make(parent, name, &entry).await?;
        if let Kind::File { size, data } = &entry.kind {
            self.content(ino, *size, data, &entry.path).await?;
        }
        self.attributes(ino, &entry).await
    }

    /// An archive may hold a name twice: the later one counts.
    async fn remove(&self, parent: Ino, name: &OsStr, path: &[u8]) -> Result<(), Failure> {
        match self.file_system.unlink(request(), parent, name).await {
            Err(errno) if !is(&errno, libc::ENOENT) => Err(failure("replace", path)(errno)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn make(&self, parent: Ino, name: &OsStr, entry: &Entry) -> Result<Ino, Failure> {
        // The kernel's encoding, see `export`.
        let device = |major: u32, minor: u32| (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        let (kind, rdev) = match &entry.kind {
            Kind::Symlink(target) => {
                let target = OsStr::from_bytes(target);
                let made = self.file_system.symlink(request(), parent, name, target).await;
                return made.map(|reply| reply.attr.ino).map_err(failure("make the link", &entry.path));
            }
            Kind::Character(major, minor) => (libc::S_IFCHR, device(*major, *minor)),
            Kind::BlockDevice(major, minor) => (libc::S_IFBLK, device(*major, *minor)),
            Kind::Fifo => (libc::S_IFIFO, 0),
            Kind::Socket => (libc::S_IFSOCK, 0),
            Kind::File { .. } | Kind::Directory | Kind::HardLink(_) => (libc::S_IFREG, 0),
        };
        let made = self.file_system.mknod(request(), parent, name, kind | 0o600, rdev).await;
        made.map(|reply| reply.attr.ino).map_err(failure("make", &entry.path))
    }

    async fn content(
        &mut self,
        ino: Ino,
        size: u64,
        data: &[Range<u64>],
        path: &[u8],
    ) -> Result<(), Failure> {
        for range in data {
            let mut at = range.start;
            while at < range.end {
                let most = (range.end - at).min(WRITE_BYTES as u64) as usize;
                let count = self.fill(most)?;
                let written =
                    self.file_system.write(request(), ino, 0, at, &self.buffer[..count], 0, 0).await;
                written.map_err(failure("write", path))?;
                at += count as u64;
                self.done.data_bytes += count as u64;
                self.report();
            }
        }
        if data.last().map_or(0, |last| last.end) < size {
            let grown = SetAttr { size: Some(size), ..SetAttr::default() };
            self.file_system.setattr(request(), ino, None, grown).await.map_err(failure("extend", path))?;
        }
        Ok(())
    }

    /// Reads into the buffer until `most` bytes are there: pipes bring little at a time.
    fn fill(&mut self, most: usize) -> Result<usize, Failure> {
        let mut filled = 0;
        while filled < most {
            filled += self.reader.read_data(&mut self.buffer[filled..most])?;
        }
        Ok(filled)
    }

    /// Owner first (it clears privileges), then attributes, times last.
    async fn attributes(&self, ino: Ino, entry: &Entry) -> Result<(), Failure> {
        let path = &entry.path;
        let mode = (!matches!(entry.kind, Kind::Symlink(_))).then_some(entry.mode);
        let owner = SetAttr { uid: Some(entry.uid), gid: Some(entry.gid), mode, ..SetAttr::default() };
        self.file_system
            .setattr(request(), ino, None, owner)
            .await
            .map_err(failure("set the owner of", path))?;
        for (name, value) in &entry.xattrs {
            let name = OsStr::from_bytes(name);
            let set = self.file_system.setxattr(request(), ino, name, value, 0, 0).await;
            set.map_err(failure("set an extended attribute of", path))?;
        }
        let times = SetAttr {
            mtime: Some(timestamp(entry.mtime)),
            atime: Some(timestamp(entry.atime.unwrap_or(entry.mtime))),
            ..SetAttr::default()
        };
        self.file_system
            .setattr(request(), ino, None, times)
            .await
            .map_err(failure("set the times of", path))?;
        Ok(())
    }

    // === Names ===

    /// The directory of a path, made with all above it where it is missing.
    async fn directory(&mut self, path: &[u8]) -> Result<Ino, Failure> {
        if let Some(ino) = self.directories.get(path) {
            return Ok(*ino);
        }
        let mut ino = ROOT_INO;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let above = &path[..end];
            ino = match self.directories.get(above) {
                Some(known) => *known,
                None => {
                    let made = self.make_directory(ino, above).await?;
                    self.directories.insert(above.to_vec(), made);
                    made
                }
            };
        }
        Ok(ino)
    }

    async fn make_directory(&self, parent: Ino, path: &[u8]) -> Result<Ino, Failure> {
        let (_, name) = split(path);
        match self.file_system.mkdir(request(), parent, name, 0o755, 0).await {
            Ok(reply) => Ok(reply.attr.ino),
            Err(errno) => Err(failure("make the directory", path)(errno)),
        }
    }

    async fn find(&self, path: &[u8]) -> Result<Ino, Failure> {
        let (parent, name) = split(path);
        let known = self.directories.get(parent);
        let missing = || {
            let shown = String::from_utf8_lossy(path);
            Failure::refused(ErrorKind::NotFound, format!("the archive links to `{shown}`, which it has not"))
        };
        let parent = known.ok_or_else(missing)?;
        match self.file_system.lookup(request(), *parent, name).await {
            Ok(reply) if reply.attr.ino != 0 => Ok(reply.attr.ino),
            Ok(_) => Err(missing()),
            Err(errno) if is(&errno, libc::ENOENT) => Err(missing()),
            Err(errno) => Err(failure("find", path)(errno)),
        }
    }
}
