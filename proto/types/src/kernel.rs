//! What the file system asks of the kernel's caches, whoever drives the FUSE session.

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
