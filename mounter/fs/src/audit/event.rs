//! What is told of one operation.

use bytes::Bytes;
use tarbox_types::Ino;
use uuid::Uuid;

use super::operation::Operation;

/// A pod, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its uid.
    pub uid: Uuid,
    /// Its namespace; empty where nobody has told.
    pub namespace: String,
    /// Its name; empty where nobody has told.
    pub name: String,
}

/// One event of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in microseconds since 1970, by the node's clock; of what is summed up the last time.
    pub at: u64,
    /// What.
    pub operation: Operation,
    /// Path from the tenant's root as it was then; empty where nothing is known of it.
    pub path: Bytes,
    /// Path afterwards, of a rename.
    pub to: Option<Bytes>,
    /// Inode.
    pub ino: Ino,
    /// Who asked: owner of the process.
    pub uid: u32,
    /// Group of the process.
    pub gid: u32,
    /// Process; 0 = one that the node's mounter cannot see.
    pub pid: u32,
    /// Name of the process, at most 15 bytes.
    pub process: Bytes,
    /// Pod of the process.
    pub pod: Option<Pod>,
    /// errno; 0 = done.
    pub result: u32,
    /// How many operations are summed up; 1 = it is one.
    pub count: u64,
    /// First byte of the content that is concerned; of a truncation the new size.
    pub offset: u64,
    /// Byte after the last one that is concerned.
    pub end: u64,
    /// Bytes written or read, all together.
    pub bytes: u64,
    /// How long it took, in microseconds; of what is summed up from the first to the last one. `None` = not measured.
    pub micros: Option<u64>,
}

impl Event {
    /// One operation of which nothing else is known yet.
    #[must_use]
    pub fn new(operation: Operation) -> Self {
        Self {
            at: 0,
            operation,
            path: Bytes::new(),
            to: None,
            ino: 0,
            uid: 0,
            gid: 0,
            pid: 0,
            process: Bytes::new(),
            pod: None,
            result: 0,
            count: 1,
            offset: 0,
            end: 0,
            bytes: 0,
            micros: None,
        }
    }
}
