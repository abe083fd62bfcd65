//! A tenant as an archive, read from the database.

use std::{collections::HashMap, io::Write, ops::Range, sync::Arc};

use bytes::Bytes;
use tarbox_fs::xattr::Xattrs;
use tarbox_store::{DataRef, Extent, InodeRow, TenantStore, UNIT, View};
use tarbox_types::{Ino, ROOT_INO};

use super::{ArchiveError, Entry, Kind, Writer};
use crate::failure::Failure;

/// Names asked for at a time.
const PAGE: usize = 1024;
/// Bytes of blocks read at a time.
const READ_BYTES: u64 = 4 << 20;
/// Blocks whose extents are asked for at a time, of a file that may have more than [`EXTENTS_MAX`].
const WINDOW: u64 = 1 << 16;
/// Extents of one file held in memory at a time.
const EXTENTS_MAX: u64 = 1 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Exported {
    /// Members.
    pub entries: u64,
    /// Bytes of files, holes left out.
    pub data_bytes: u64,
    /// Bytes of the archive.
    pub archive_bytes: u64,
}

/// Walks a view of a tenant.
pub struct Export<'e, W> {
    store: Arc<dyn TenantStore>,
    view: View,
    block_size: u64,
    writer: Writer<W>,
    /// First paths of inodes with several names.
    linked: HashMap<Ino, Vec<u8>>,
    done: Exported,
    progress: &'e (dyn Fn(&Exported) + Sync),
}

impl<'e, W: Write> Export<'e, W> {
    /// Begins an archive of what `view` shows.
    pub fn new(
        store: Arc<dyn TenantStore>,
        view: View,
        block_size: u32,
        output: W,
        progress: &'e (dyn Fn(&Exported) + Sync),
    ) -> Self {
        let writer = Writer::new(output);
        let (linked, done) = (HashMap::new(), Exported::default());
        Self { store, view, block_size: block_size.into(), writer, linked, done, progress }
    }

    /// Writes the whole tree.
    ///
    /// # Errors
    /// Where the database cannot be read or the archive not written.
    pub async fn run(mut self) -> Result<Exported, Failure> {
        let root = self.store.inode(&self.view, ROOT_INO).await?.ok_or_else(|| {
            Failure::refused(tarbox_types::ErrorKind::Damaged, "the tenant has no root directory")
        })?;
        let mut directories = vec![(root, Vec::new())];
        while let Some((row, path)) = directories.pop() {
            self.member(&row, &path).await?;
            let below = self.list(row.ino, &path).await?;
            // The last is taken first: the archive is in the order of the directory.
            directories.extend(below.into_iter().rev());
        }
        self.done.archive_bytes = self.writer.written();
        self.writer.finish().map_err(ArchiveError::Io)?;
        Ok(self.done)
    }

    /// Writes what a directory names; returns the directories among it.
    async fn list(&mut self, ino: Ino, path: &[u8]) -> Result<Vec<(InodeRow, Vec<u8>)>, Failure> {
        let mut directories = Vec::new();
        let mut after = 0;
        loop {
            let page = self.store.list(&self.view, ino, after, PAGE).await?;
            let is_last = page.len() < PAGE;
            for (entry, row) in page {
                after = entry.cookie;
                let path =
                    if path.is_empty() { entry.name.to_vec() } else { [path, &entry.name].join(&b'/') };
                if row.mode & libc::S_IFMT == libc::S_IFDIR {
                    directories.push((row, path));
                } else {
                    self.member(&row, &path).await?;
                }
            }
            if is_last {
                return Ok(directories);
            }
        }
    }

    async fn member(&mut self, row: &InodeRow, path: &[u8]) -> Result<(), Failure> {
        let is_directory = row.mode & libc::S_IFMT == libc::S_IFDIR;
        let first = if row.nlink > 1 && !is_directory { self.linked.get(&row.ino).cloned() } else { None };
        let is_again = first.is_some();
        let kind = match first {
            Some(first) => Kind::HardLink(first),
            None => self.kind(row).await?,
        };
        if row.nlink > 1 && !is_directory && !is_again {
            self.linked.insert(row.ino, path.to_vec());
        }
        let ranges = match &kind {
            Kind::File { data, .. } => data.clone(),
            _ => Vec::new(),
        };
        let xattrs = if is_again { Vec::new() } else { self.xattrs(row.ino).await? };
        let entry = Entry {
            path: path.to_vec(),
            kind,
            mode: row.mode & 0o7777,
            uid: row.uid,
            gid: row.gid,
            mtime: row.mtime,
            atime: Some(row.atime),
            xattrs,
        };
        self.writer.begin(&entry).map_err(ArchiveError::Io)?;
        for range in ranges {
            self.content(row, range).await?;
        }
        self.done.entries += 1;
        self.report();
        Ok(())
    }

    fn report(&mut self) {
        self.done.archive_bytes = self.writer.written();
        (self.progress)(&self.done);
    }

    async fn kind(&self, row: &InodeRow) -> Result<Kind, Failure> {
        // The kernel's encoding of 32 bits: 12 bits of major, 20 of minor. Source: `linux/kdev_t.h`.
        let device = || ((row.rdev >> 8) & 0xfff, (row.rdev & 0xff) | ((row.rdev >> 12) & 0xf_ff00));
        Ok(match row.mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink(row.target.to_vec()),
            libc::S_IFCHR => Kind::Character(device().0, device().1),
            libc::S_IFBLK => Kind::BlockDevice(device().0, device().1),
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => Kind::File { size: row.size, data: self.allocated(row).await? },
        })
    }

    async fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Failure> {
        let encoded = self.store.xattrs(&self.view, ino).await?;
        let decoded = Xattrs::decode(encoded.as_ref()).map_err(|error| Failure::Part {
            kind: error.kind(),
            doing: format!("read the extended attributes of inode {ino}"),
            source: error.into(),
        })?;
        let pair = |name: &Bytes| Some((name.to_vec(), decoded.get(name)?.to_vec()));
        Ok(decoded.names().filter_map(pair).collect())
    }

    // === Content ===

    /// The ranges of a file that are not holes.
    async fn allocated(&self, row: &InodeRow) -> Result<Vec<Range<u64>>, Failure> {
        let data = DataRef { did: row.did, cut: row.cut };
        let end = row.size.div_ceil(self.block_size);
        let window = if row.charge / UNIT <= EXTENTS_MAX { end.max(1) } else { WINDOW };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut from = 0;
        while from < end {
            let to = end.min(from + window);
            for extent in self.store.extents(&self.view, data, from..to).await? {
                self.add_allocated(&extent, row.size, &mut ranges);
            }
            from = to;
        }
        Ok(ranges)
    }

    fn add_allocated(&self, extent: &Extent, size: u64, ranges: &mut Vec<Range<u64>>) {
        if extent.is_hole() {
            return;
        }
        let units = extent.alloc.0.iter().enumerate().flat_map(|(at, byte)| {
            (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at as u64 * 8 + bit)
        });
        for unit in units {
            let start = extent.blk * self.block_size + unit * UNIT;
            let end = size.min(start + UNIT);
            match ranges.last_mut() {
                _ if start >= size => return,
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
    }

    async fn content(&mut self, row: &InodeRow, range: Range<u64>) -> Result<(), Failure> {
        let data = DataRef { did: row.did, cut: row.cut };
        let at_a_time = (READ_BYTES / self.block_size).max(1);
        let mut from = range.start;
        while from < range.end {
            let first = from / self.block_size;
            let last = (range.end - 1) / self.block_size;
            let blks: Vec<u64> = (first..=last).take(at_a_time as usize).collect();
            let found: HashMap<u64, Bytes> =
                self.store.read(&self.view, data, &blks).await?.into_iter().collect();
            for blk in blks {
                let to = range.end.min((blk + 1) * self.block_size);
                self.part(found.get(&blk), from - blk * self.block_size, to - from)?;
                from = to;
            }
        }
        Ok(())
    }

    /// `length` bytes of a block from `offset` on; what it does not have is zero.
    fn part(&mut self, block: Option<&Bytes>, offset: u64, length: u64) -> Result<(), Failure> {
        let (offset, length) = (offset as usize, length as usize);
        let there = block.map_or(&[][..], |bytes| {
            let end = bytes.len().min(offset + length);
            bytes.get(offset..end).unwrap_or(&[])
        });
        self.writer.data(there).map_err(ArchiveError::Io)?;
        if there.len() < length {
            self.writer.data(&vec![0; length - there.len()]).map_err(ArchiveError::Io)?;
        }
        self.done.data_bytes += length as u64;
        self.report();
        Ok(())
    }
}
