//! How our engine passes on what `fuse3`'s trait has no argument for.
//!
//! Under fuse3's own session none of these appear, and the file system behaves as if they were absent.

/// `create` with these bits of `open(2)`'s flags is `FUSE_TMPFILE`: the name is to be ignored and no entry made.
pub const O_TMPFILE_BITS: u32 = 0o20_000_000;

/// `create`, `mknod`: the caller's umask stands in the upper half of `mode` (bit 31 set where it is given at all).
/// The kernel sends it unapplied (`FUSE_DONT_MASK`) because a default ACL of the parent takes its place.
#[must_use]
pub fn pack_umask(mode: u32, umask: u32) -> u32 {
    (mode & 0xffff) | ((umask & 0o7777) << 16) | 1 << 31
}

/// The mode and the umask of [`pack_umask`]; no umask where the kernel has applied it already.
#[must_use]
pub fn unpack_umask(mode: u32) -> (u32, Option<u32>) {
    (mode & 0xffff, (mode >> 31 == 1).then_some((mode >> 16) & 0o7777))
}

/// `mkdir`: this bit in the `umask` argument says that the umask is still to be applied (as with [`pack_umask`]).
pub const UMASK_UNAPPLIED: u32 = 1 << 31;

/// `setxattr`: this bit in `position` is `FUSE_SETXATTR_ACL_KILL_SGID`.
pub const ACL_KILL_SGID: u32 = 1;

/// `write`: bit of `write_flags` (`FUSE_WRITE_KILL_SUIDGID`): clear setuid, setgid and file capabilities.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// `setattr`: this value in `lock_owner` is `FATTR_KILL_SUIDGID` (truncation by a caller without CAP_FSETID).
pub const SETATTR_KILL_SUIDGID: u64 = u64::MAX;
