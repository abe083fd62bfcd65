//! What lies under a mount of ours: a read-only file system, so that writes fail loudly when the mount is missing.
//!
//! A directory's mode does not stop root; a read-only superblock does: an empty tmpfs, made read-only, which costs the kernel a few KiB.

use std::{io, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::mountinfo::{Mount, Mounts};
use crate::failure::AgentError;

/// The source under which the mount table knows it.
const SOURCE: &str = "tarbox-sentry";

/// Whether a mount is a sentry: nobody's, and free to be mounted over.
#[must_use]
pub(super) fn is_sentry(mount: &Mount) -> bool {
    mount.fs_type == "tmpfs" && mount.source == SOURCE
}

/// Puts a sentry at a directory at which nothing is mounted yet; one that has a sentry keeps it, whatever is mounted over that.
///
/// # Errors
/// As mount(2), or where something else is mounted there already.
pub fn place(path: &Path) -> Result<(), AgentError> {
    let mounts = table()?;
    if mounts.at(path).any(is_sentry) {
        return Ok(());
    }
    if let Some(top) = mounts.top(path) {
        return Err(in_the_way(path, top));
    }
    // Read-only from its first moment: there is no half of it.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(SOURCE), path, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=0555"))
        .map_err(|errno| AgentError::io("put a read-only file system under", path)(errno.into()))
}

/// Takes the sentry away from a directory; one that has none is left as it is.
///
/// # Errors
/// Where something is still mounted over it.
pub fn remove(path: &Path) -> Result<(), AgentError> {
    loop {
        let mounts = table()?;
        if !mounts.at(path).any(is_sentry) {
            return Ok(());
        }
        if let Some(top) = mounts.top(path).filter(|top| !is_sentry(top)) {
            return Err(in_the_way(path, top));
        }
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match umount2(path, flags).map_err(io::Error::from) {
            Ok(()) => {}
            Err(error) => {
                return Err(AgentError::io("take the read-only file system from under", path)(error));
            }
        }
    }
}

fn in_the_way(path: &Path, top: &Mount) -> AgentError {
    AgentError::Precondition(format!("{} ({}) is mounted at {}", top.source, top.fs_type, path.display()))
}

fn table() -> Result<Mounts, AgentError> {
    Mounts::read_all().map_err(AgentError::io("read", Path::new("/proc/self/mountinfo")))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use tempfile::TempDir;

    use super::*;

    /// A directory from which all mounts are taken away at the end.
    struct Place(TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn path(&self) -> PathBuf {
            self.0.path().canonicalize().expect("path")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            while umount2(self.0.path(), MntFlags::MNT_DETACH).is_ok() {}
        }
    }

    fn count(path: &Path) -> usize {
        Mounts::read_all().expect("mounts").at(path).count()
    }

    #[test]
    fn nobody_writes_where_the_sentry_stands_root_included() {
        let directory = Place::new();
        let path = directory.path();
        place(&path).expect("place");
        let error = fs::write(path.join("file"), "lost").expect_err("read-only");
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        remove(&path).expect("remove");
        fs::write(path.join("file"), "kept").expect("the directory itself again");
    }

    #[test]
    fn placing_and_removing_twice_changes_nothing_and_nobody_else_sees_it() {
        let directory = Place::new();
        let path = directory.path();
        place(&path).expect("place");
        place(&path).expect("again");
        assert_eq!(count(&path), 1);
        assert_eq!(Mounts::read().expect("mounts").top(&path), None);
        remove(&path).expect("remove");
        remove(&path).expect("again");
        assert_eq!(count(&path), 0);
    }

    #[test]
    fn it_stays_under_what_is_mounted_over_it() {
        let directory = Place::new();
        let path = directory.path();
        place(&path).expect("place");
        mount(Some("volume"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount over it");
        place(&path).expect("it is there");
        fs::write(path.join("file"), "through").expect("the volume can be written");
        let error = remove(&path).expect_err("covered").report();
        assert!(error.contains("volume (tmpfs) is mounted"), "{error}");
        umount2(&path, MntFlags::empty()).expect("the mount is lost");
        assert!(fs::write(path.join("file"), "lost").is_err());
    }

    #[test]
    fn a_foreign_mount_is_refused() {
        let directory = Place::new();
        let path = directory.path();
        mount(Some("foreign"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount");
        let error = place(&path).expect_err("taken").report();
        assert!(error.contains("foreign (tmpfs)"), "{error}");
    }
}
