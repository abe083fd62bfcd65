//! What is agreed with the kernel at INIT, once per connection. Pure.
//!
//! Never asked for: `FUSE_ATOMIC_O_TRUNC` (with stateless opens O_TRUNC would be lost silently), splice and io_uring
//! (a request must land in its slot), passthrough (excludes write-back), export support (node ids are not looked up again).

use serde::{Deserialize, Serialize};

use crate::abi::{self, init as flag};
use crate::decode::{Dialect, InitIn};
use crate::encode::InitOut;

/// What a session would like to have; the kernel may lack some of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitWishes {
    /// Longest write in bytes; default 1 MiB, which is also the most.
    pub max_write: u32,
    /// Longest readahead in bytes; default: whatever the kernel allows.
    pub max_readahead: u32,
    /// Requests nobody waits for (readahead, asynchronous) that may be out at a time; default 64.
    pub max_background: u16,
    /// From how many of those on the kernel calls the device congested; default 48.
    pub congestion_threshold: u16,
    /// The kernel collects writes in its page cache; ENOSPC then no longer reaches `write(2)`. Default off.
    pub writeback_cache: bool,
    /// POSIX ACLs, checked by the kernel; includes the effect of `default_permissions`. Default on.
    pub posix_acl: bool,
    /// `fcntl` locks come here instead of staying in the kernel. Default off.
    pub posix_locks: bool,
    /// `flock` locks come here as well. Default off.
    pub flock_locks: bool,
    /// Idmapped mounts; only where the file system is mounted with `default_permissions`. Default off.
    pub idmap: bool,
}

impl Default for InitWishes {
    fn default() -> Self {
        Self {
            max_write: 1 << 20,
            max_readahead: u32::MAX,
            max_background: 64,
            congestion_threshold: 48,
            writeback_cache: false,
            posix_acl: true,
            posix_locks: false,
            flock_locks: false,
            idmap: false,
        }
    }
}

/// What was agreed: everything a later process needs to serve the connection without another INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedInit {
    /// The kernel's minor version.
    pub kernel_minor: u32,
    /// All flags the kernel offered.
    pub offered: u64,
    /// The flags in force.
    pub flags: u64,
    /// Longest write in bytes.
    pub max_write: u32,
    /// Longest readahead in bytes.
    pub max_readahead: u32,
    /// See [`InitWishes::max_background`].
    pub max_background: u16,
    /// See [`InitWishes::congestion_threshold`].
    pub congestion_threshold: u16,
    /// Most pages in a request.
    pub max_pages: u16,
}

/// The kernel speaks a protocol that is too old or of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel speaks FUSE {major}.{minor}; needed is {}.{} or newer", abi::MAJOR, abi::MINOR_OLDEST)]
pub struct Incompatible {
    /// The kernel's major version.
    pub major: u32,
    /// The kernel's minor version.
    pub minor: u32,
}

/// Flags that are taken wherever the kernel has them.
const ALWAYS: u64 = flag::ASYNC_READ
    | flag::BIG_WRITES
    | flag::DONT_MASK
    | flag::DO_READDIRPLUS
    | flag::READDIRPLUS_AUTO
    | flag::NO_OPEN_SUPPORT
    | flag::PARALLEL_DIROPS
    | flag::MAX_PAGES
    | flag::CACHE_SYMLINKS
    | flag::NO_OPENDIR_SUPPORT
    | flag::EXPLICIT_INVAL_DATA
    // Where it is missing (before 5.11), the kernel clears setuid bits itself, with a SETATTR before the write.
    | flag::HANDLE_KILLPRIV_V2
    | flag::SETXATTR_EXT
    | flag::INIT_EXT
    // Where a file system wants to see each read and write: shared mappings of such files work as well (from 6.6 on).
    | flag::DIRECT_IO_ALLOW_MMAP
    | flag::HAS_RESEND;

/// Agrees: the kernel's INIT and the wishes give what is in force.
///
/// # Errors
/// [`Incompatible`] where the kernel's protocol is older than 7.31.
pub fn negotiate(kernel: &InitIn, wishes: &InitWishes) -> Result<SavedInit, Incompatible> {
    if kernel.major != abi::MAJOR || kernel.minor < abi::MINOR_OLDEST {
        return Err(Incompatible { major: kernel.major, minor: kernel.minor });
    }
    let optional = [
        (wishes.writeback_cache, flag::WRITEBACK_CACHE),
        (wishes.posix_acl, flag::POSIX_ACL),
        (wishes.posix_locks, flag::POSIX_LOCKS),
        (wishes.flock_locks, flag::FLOCK_LOCKS),
        (wishes.idmap, flag::ALLOW_IDMAP),
    ];
    let wanted = optional.iter().filter(|(wish, _)| *wish).fold(ALWAYS, |flags, (_, flag)| flags | flag);
    let flags = wanted & kernel.flags;
    let most_pages = if flags & flag::MAX_PAGES != 0 { abi::MAX_PAGES } else { abi::DEFAULT_MAX_PAGES };
    let most_bytes = (most_pages * 4096) as u32;
    Ok(SavedInit {
        kernel_minor: kernel.minor,
        offered: kernel.flags,
        flags,
        max_write: wishes.max_write.clamp(4096, most_bytes),
        max_readahead: wishes.max_readahead.min(kernel.max_readahead),
        max_background: wishes.max_background.max(1),
        congestion_threshold: wishes.congestion_threshold.clamp(1, wishes.max_background.max(1)),
        max_pages: most_pages as u16,
    })
}

impl SavedInit {
    /// Whether `flag` of [`abi::init`] is in force.
    #[must_use]
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The reply to INIT.
    #[must_use]
    pub fn reply(&self) -> InitOut {
        InitOut {
            minor: abi::MINOR.min(self.kernel_minor),
            max_readahead: self.max_readahead,
            flags: self.flags,
            max_background: self.max_background,
            congestion_threshold: self.congestion_threshold,
            max_write: self.max_write,
            time_gran: 1,
            max_pages: self.max_pages,
        }
    }

    /// How requests are laid out.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        Dialect { setxattr_ext: self.has(flag::SETXATTR_EXT) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: InitIn = InitIn { major: 7, minor: 45, max_readahead: 131_072, flags: u64::MAX };

    #[test]
    fn what_loses_o_trunc_or_slots_is_never_agreed() {
        let everything = InitWishes {
            writeback_cache: true,
            posix_locks: true,
            flock_locks: true,
            idmap: true,
            ..InitWishes::default()
        };
        let agreed = negotiate(&KERNEL, &everything).unwrap();
        let never = flag::ATOMIC_O_TRUNC | flag::OVER_IO_URING | flag::PASSTHROUGH | flag::EXPORT_SUPPORT;
        let never = never | flag::CREATE_SUPP_GROUP | flag::SECURITY_CTX | flag::AUTO_INVAL_DATA;
        assert_eq!(agreed.flags & never, 0);
        for wished in [flag::WRITEBACK_CACHE, flag::POSIX_LOCKS, flag::FLOCK_LOCKS, flag::ALLOW_IDMAP] {
            assert!(agreed.has(wished));
        }
    }

    #[test]
    fn nothing_is_agreed_that_the_kernel_does_not_offer() {
        let agreed =
            negotiate(&InitIn { flags: flag::BIG_WRITES, ..KERNEL }, &InitWishes::default()).unwrap();
        assert_eq!(agreed.flags, flag::BIG_WRITES);
        // 32 pages, without FUSE_MAX_PAGES.
        assert_eq!((agreed.max_write, agreed.max_pages), (131_072, 32));
        assert!(!agreed.dialect().setxattr_ext);
    }

    #[test]
    fn locks_and_write_back_stay_in_the_kernel_unless_wished() {
        let agreed = negotiate(&KERNEL, &InitWishes::default()).unwrap();
        assert_eq!(agreed.flags & (flag::POSIX_LOCKS | flag::FLOCK_LOCKS | flag::WRITEBACK_CACHE), 0);
        assert!(agreed.has(flag::POSIX_ACL) && agreed.has(flag::DONT_MASK));
        assert_eq!((agreed.max_write, agreed.max_readahead), (1 << 20, 131_072));
    }

    #[test]
    fn an_old_kernel_is_refused_and_a_newer_one_answered_with_our_version() {
        let old = InitIn { minor: 26, ..KERNEL };
        assert_eq!(negotiate(&old, &InitWishes::default()), Err(Incompatible { major: 7, minor: 26 }));
        let newer = negotiate(&InitIn { minor: 99, ..KERNEL }, &InitWishes::default()).unwrap();
        assert_eq!(newer.reply().minor, abi::MINOR);
    }

    #[test]
    fn what_was_agreed_survives_being_written_down() {
        let agreed = negotiate(&KERNEL, &InitWishes::default()).unwrap();
        let text = serde_json::to_string(&agreed).unwrap();
        assert_eq!(serde_json::from_str::<SavedInit>(&text).unwrap(), agreed);
    }
}
