//! What one step of a sequence can be.

/// An operation by a user.
#[derive(Clone, Debug)]
pub struct Step {
    /// Who does it (uid and gid).
    pub uid: u32,
    /// What.
    pub op: Op,
}

/// An operation. Paths are below the sequence's root; `slot` is a place for an open file.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Op {
    Open { path: String, flags: i32, mode: u32, slot: usize },
    Tmpfile { dir: String, mode: u32, slot: usize },
    LinkSlot { slot: usize, path: String },
    Close { slot: usize },
    Write { slot: usize, off: u64, len: usize, seed: u64 },
    WriteAtPosition { slot: usize, len: usize, seed: u64 },
    Read { slot: usize, off: u64, len: usize },
    CopyRange { from: usize, to: usize, from_off: u64, to_off: u64, len: usize },
    Fallocate { slot: usize, mode: i32, off: u64, len: u64 },
    SeekData { slot: usize, off: u64 },
    SeekHole { slot: usize, off: u64 },
    TruncateSlot { slot: usize, len: u64 },
    StatSlot { slot: usize },
    Fsync { slot: usize, data_only: bool },
    TryLock { slot: usize, shared: bool },
    Unlock { slot: usize },
    Truncate { path: String, len: u64 },
    Mkdir { path: String, mode: u32 },
    Rmdir { path: String },
    Mknod { path: String, kind: u32, mode: u32 },
    Unlink { path: String },
    Symlink { target: String, path: String },
    Readlink { path: String },
    Link { from: String, to: String },
    Rename { from: String, to: String, flags: u32 },
    Chmod { path: String, mode: u32 },
    Chown { path: String, uid: Option<u32>, gid: Option<u32>, follow: bool },
    SetTimes { path: String, atime: i64, mtime: i64, nsec: i64, follow: bool },
    Stat { path: String, follow: bool },
    List { path: String },
    SetXattr { path: String, name: String, len: usize, seed: u64 },
    GetXattr { path: String, name: String },
    RemoveXattr { path: String, name: String },
    Access { path: String, mode: i32 },
}
