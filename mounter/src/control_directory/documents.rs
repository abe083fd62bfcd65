//! What is read in the control directory: a file of its own for each time that somebody looks one up.
//!
//! Files are opened without a message, and the kernel reads them through its page cache. So each lookup gets a new inode, whose
//! content and size never change: what was opened is one document from beginning to end, however slowly it is read, and the next
//! to open gets what is true then. Documents lie in the mounter's directory, so that a successor goes on with them; one goes when
//! the kernel has forgotten its inode.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tarbox_types::{Ino, fuse::DOCUMENT_BITS};

/// Numbers begin with the milliseconds since 2020, so that none is used twice, whatever is forgotten: enough until 2054.
const NUMBERS_SINCE: u64 = 1_577_836_800;

/// Documents may take so many bytes together: they lie in memory, and whoever may read can keep many of them open.
const BYTES_MAX: u64 = 64 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Documents {
    directory: PathBuf,
    next: AtomicU64,
    bytes: AtomicU64,
}

/// What a document is of, from its inode's number.
pub(super) fn code_of(ino: Ino) -> u8 {
    (ino >> DOCUMENT_BITS) as u8
}

fn number_of(ino: Ino) -> u64 {
    ino & ((1 << DOCUMENT_BITS) - 1)
}

fn ino_of(path: &Path) -> Option<Ino> {
    Ino::from_str_radix(path.file_name()?.to_str()?, 16).ok()
}

impl Documents {
    /// Goes on with what is there.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = now.saturating_sub(Duration::from_secs(NUMBERS_SINCE)).as_millis() as u64;
        let documents = Self { directory, next: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let all = documents.all();
        let last = all.iter().copied().map(number_of).max().unwrap_or(0);
        let bytes = all.iter().filter_map(|ino| documents.look(*ino).ok()).map(|(size, _)| size).sum();
        documents.bytes.store(bytes, Ordering::Relaxed);
        documents.next.store((last + 1).max(number_of(now)), Ordering::Relaxed);
        Ok(documents)
    }

    /// Keeps a text; the number of its inode.
    ///
    /// # Errors
    /// `StorageFull` where those that are open take too much already.
    pub(super) fn add(&self, code: u8, text: &[u8]) -> io::Result<Ino> {
        let len = text.len() as u64;
        if self.bytes.fetch_add(len, Ordering::Relaxed) + len > BYTES_MAX {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            return Err(io::ErrorKind::StorageFull.into());
        }
        let ino = u64::from(code) << DOCUMENT_BITS | number_of(self.next.fetch_add(1, Ordering::Relaxed));
        let path = self.path(ino);
        fs::write(&path, text).map(|()| ino).inspect_err(|_| {
            // What there was no room for takes none.
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            let _ = fs::remove_file(&path);
        })
    }

    /// Bytes of a document: fewer where it ends.
    pub(super) fn read(&self, ino: Ino, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = vec![0; len];
        let file = File::open(self.path(ino))?;
        let mut read = 0;
        while read < len {
            match file.read_at(&mut buffer[read..], offset + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        buffer.truncate(read);
        Ok(buffer.into())
    }

    /// Its size in bytes, and when it was made.
    pub(super) fn look(&self, ino: Ino) -> io::Result<(u64, SystemTime)> {
        let metadata = fs::metadata(self.path(ino))?;
        Ok((metadata.len(), metadata.modified()?))
    }

    /// The kernel has forgotten the inode.
    pub(super) fn remove(&self, ino: Ino) {
        let size = self.look(ino).map_or(0, |(size, _)| size);
        if fs::remove_file(self.path(ino)).is_ok() {
            self.bytes.fetch_sub(size, Ordering::Relaxed);
        }
    }

    /// Removes documents that are older than `age` and that the kernel does not know: of lookups that a process died over.
    pub(super) fn sweep(&self, age: Duration, is_known: impl Fn(Ino) -> bool) {
        for ino in self.all() {
            let made = self.look(ino).map(|(_, made)| made);
            let is_old = made.is_ok_and(|made| made.elapsed().is_ok_and(|elapsed| elapsed > age));
            if is_old && !is_known(ino) {
                self.remove(ino);
            }
        }
    }

    fn path(&self, ino: Ino) -> PathBuf {
        self.directory.join(format!("{ino:012x}"))
    }

    fn all(&self) -> Vec<Ino> {
        let entries = fs::read_dir(&self.directory);
        entries.map_or_else(
            |_| Vec::new(),
            |entries| entries.flatten().filter_map(|entry| ino_of(&entry.path())).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_what_it_was_also_for_a_successor_and_no_number_is_used_twice() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let documents = Documents::open(directory.path().to_owned()).expect("open");
        let (one, other) =
            (documents.add(7, b"first").expect("add"), documents.add(7, b"second").expect("add"));
        assert_ne!(one, other);
        assert_eq!((code_of(one), code_of(other)), (7, 7));
        assert!(one < 1 << 48);
        let successor = Documents::open(directory.path().to_owned()).expect("open");
        assert_eq!(successor.read(one, 0, 4096).expect("read"), "first");
        assert_eq!(successor.read(other, 3, 2).expect("read"), "on");
        assert_eq!(successor.read(other, 100, 2).expect("read"), "");
        assert!(number_of(successor.add(9, b"third").expect("add")) > number_of(other));
        successor.remove(one);
        assert_eq!(successor.read(one, 0, 1).expect_err("gone").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_open_takes_no_more_than_its_bound_and_gives_it_back() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let documents = Documents::open(directory.path().to_owned()).expect("open");
        let text = vec![b'x'; BYTES_MAX as usize / 2];
        let first = documents.add(1, &text).expect("add");
        documents.add(1, &text).expect("add");
        for documents in [&documents, &Documents::open(directory.path().to_owned()).expect("open")] {
            assert_eq!(documents.add(1, b"x").expect_err("full").kind(), io::ErrorKind::StorageFull);
        }
        documents.remove(first);
        documents.add(1, b"x").expect("there is room again");
    }

    #[test]
    fn only_what_is_old_and_unknown_is_swept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let documents = Documents::open(directory.path().to_owned()).expect("open");
        let (known, unknown) = (documents.add(1, b"a").expect("add"), documents.add(1, b"b").expect("add"));
        documents.sweep(Duration::from_secs(60), |_| false);
        assert!(documents.look(unknown).is_ok(), "its lookup may be on its way to the kernel");
        while documents.look(unknown).expect("there").1.elapsed().unwrap_or_default().is_zero() {}
        documents.sweep(Duration::ZERO, |ino| ino == known);
        assert!(documents.look(known).is_ok() && documents.look(unknown).is_err());
    }
}
