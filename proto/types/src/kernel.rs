//! What the file system has to know of the kernel and of its requests, whoever drives the FUSE session.

use crate::Ino;

/// Notifications to the kernel. Implementations may block on the kernel's page locks:
/// never call them while holding a lock that a request needs, nor on a thread that reads requests.
pub trait KernelCache: Send + Sync {
    /// Drops cached attributes, and pages in `offset .. offset + length` (length 0 = to the end; offset −1 = attributes only).
    /// Returns whether the kernel still knows the inode: false means that nobody has it open.
    fn invalidate_inode(&self, ino: Ino, offset: i64, length: i64) -> bool;

    /// Drops the cached name. Returns whether the kernel knew it.
    fn invalidate_entry(&self, parent: Ino, name: &[u8]) -> bool;
}

/// The connection of a mount, as far as it concerns what has been done already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Tells it from other connections, whose requests carry the same numbers; 0 = unknown, nothing is recognised.
    pub nonce: u64,
    /// Requests that a process before had read and may have done without answering them: their `unique`, bit 63 cleared.
    pub left: Vec<u64>,
}

/// The requests that have been read and whose result is not safe yet: a successor would have to ask the journal for it.
pub trait Unanswered: Send + Sync {
    /// Whether `wanted` holds for the `unique` (bit 63 cleared) of any of them.
    fn any(&self, wanted: &mut dyn FnMut(u64) -> bool) -> bool;
}
