//! One member of an archive.

use std::ops::Range;

use tarbox_store::Time;

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the root, without `.` and `..`; empty = the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of content.
    pub mtime: Time,
    /// Last access, where it is known.
    pub atime: Option<Time>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file: `data` are the ranges whose bytes follow, one after the other; the rest are holes.
    File {
        /// Bytes.
        size: u64,
        /// Sorted, disjoint, not empty, within the size.
        data: Vec<Range<u64>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of the member of this path.
    HardLink(Vec<u8>),
    /// A character device, by major and minor number.
    Character(u32, u32),
    /// A block device, by major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// A file without holes.
    #[must_use]
    pub fn dense(size: u64) -> Self {
        Self::File { size, data: Self::dense_data(size) }
    }

    /// The data of a file without holes.
    pub(super) fn dense_data(size: u64) -> Vec<Range<u64>> {
        if size == 0 { Vec::new() } else { std::iter::once(0..size).collect() }
    }
}
