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

/// Bits of an inode number in a node id; the view of the tenant that it is seen in stands above: 0 the head.
pub const INO_BITS: u32 = 48;
/// The view of the control directory.
pub const CONTROL_VIEW: u16 = 1;
/// Bits that tell documents of one file of the control directory from each other; which file it is stands above (0: a directory).
pub const DOCUMENT_BITS: u32 = 40;

/// The inode number that programs are shown for a node id. Each document of the control directory is an inode of its own, so
/// that what was opened does not change; yet to who looks at a name twice, as cp(1) does, it is one file.
#[must_use]
pub fn shown_ino(node: u64) -> u64 {
    let is_document = node >> INO_BITS == u64::from(CONTROL_VIEW) && node >> DOCUMENT_BITS & 0xff != 0;
    if is_document { node >> DOCUMENT_BITS << DOCUMENT_BITS } else { node }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_a_file_are_shown_as_one_and_everything_else_as_it_is() {
        let control = u64::from(CONTROL_VIEW) << INO_BITS;
        let document = |file: u64, number: u64| control | file << DOCUMENT_BITS | number;
        assert_eq!(shown_ino(document(7, 1)), shown_ino(document(7, 2)));
        assert_ne!(shown_ino(document(7, 1)), shown_ino(document(8, 1)));
        for node in [1, 1 << 47 | 5, control | 3, 2 << INO_BITS | 1 << 44 | 9] {
            assert_eq!(shown_ino(node), node);
        }
    }
}
