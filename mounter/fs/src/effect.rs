//! What an operation does, as values: a record of effects is what the journal holds, what the tree applies,
//! and what the flusher folds into a commit. Effects carry the state *afterwards*, so that applying a record twice,
//! or folding many into the last one of each key, is always right.

use bytes::Bytes;
use smallvec::SmallVec;
use tarbox_store::{EntryRow, InodeRow, Seal};
use tarbox_types::{Cookie, DataId, Ino};

/// One change of the file system's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The inode is so now (new or changed).
    Inode(InodeRow),
    /// The inode is gone, its extended attributes with it.
    RemoveInode(Ino),
    /// The name is so now (new or changed).
    Entry(EntryRow),
    /// The name is gone.
    RemoveEntry {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
        /// Cookie it had.
        cookie: Cookie,
    },
    /// All extended attributes of an inode, in the encoding of `xattr.rs`; `None` = none.
    Xattrs {
        /// Inode.
        ino: Ino,
        /// Value.
        value: Option<Bytes>,
    },
    /// `len` bytes of the record's payload, from `at`, stand at `offset` of the content; the units they touch are allocated.
    Write {
        /// Content.
        did: DataId,
        /// Offset in the content, bytes.
        offset: u64,
        /// Offset in the payload, bytes.
        at: u32,
        /// Length, bytes.
        len: u32,
    },
    /// Bytes `from .. to` read as zero; with `deallocate` the units wholly inside are holes.
    Zero {
        /// Content.
        did: DataId,
        /// First byte.
        from: u64,
        /// Byte after the last.
        to: u64,
        /// Free the units.
        deallocate: bool,
    },
    /// Bytes from `from` on are gone: what is written beyond later begins as a hole.
    Truncate {
        /// Content.
        did: DataId,
        /// First byte that is gone.
        from: u64,
    },
    /// The content is gone.
    RemoveData(DataId),
    /// The layer is sealed after this record: a commit ends here.
    Seal(Seal),
}

/// Counters after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Allocated bytes of the head.
    pub used_bytes: u64,
    /// Inodes of the head.
    pub used_inodes: u64,
    /// Next number for inodes, contents and cookies.
    pub next_ino: u64,
}

/// What the caller was (or is to be) told: enough to tell it again without doing the operation again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, nothing to say.
    Done,
    /// Done; the answer shows this inode as it is now.
    Inode(Ino),
    /// So many bytes were written or copied.
    Count(u64),
}

/// What the journal holds of one operation, its payload apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// FUSE `unique` of the request, bit 63 cleared; 0 = none (our own work). With bit 63 it is no answer: see
    /// [`crate::effect_codec::AUDIT_ALONE`].
    pub unique: u64,
    /// Afterwards.
    pub counters: Counters,
    /// What is told.
    pub outcome: Outcome,
    /// In order.
    pub effects: SmallVec<[Effect; 3]>,
}
