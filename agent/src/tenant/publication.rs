//! Where a tenant is published: a bind mount of what is staged.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    mount::{MntFlags, umount2},
};
use tarbox_engine::mount_tree::{Extent, Restrictions, Tree};
use tarbox_rpc::csi::capability::MountWish;

use crate::{
    failure::AgentError,
    host::{
        mountinfo::{Mount, Mounts},
        sentry,
    },
};

/// What is found at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing is mounted there.
    Free,
    /// The file system is there, with these options.
    Ours { read_only: bool },
    /// One of our file systems that is no longer staged.
    Stale,
    /// Something else.
    Foreign { fs_type: String },
}

/// What is found at `target`, by device number. Pure.
pub(crate) fn place(mounts: &Mounts, device: &str, target: &Path) -> Place {
    match mounts.top(target) {
        None => Place::Free,
        Some(mount) if mount.device == device => Place::Ours { read_only: mount.has("ro") },
        Some(mount) if mount.is_tarbox() => Place::Stale,
        Some(mount) => Place::Foreign { fs_type: mount.fs_type.clone() },
    }
}

/// Whether a file system of ours is seen at the path.
pub(crate) fn is_shown(mounts: &Mounts, path: &Path) -> bool {
    resolve(path).is_ok_and(|path| mounts.top(&path).is_some_and(Mount::is_tarbox))
}

/// The path as the kernel writes it: links in its parents followed. The last part is not looked at: it may be a mount.
pub(crate) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => Ok(path.to_owned()),
    }
}

/// Sees that nobody writes to the bare disk where a mount of ours is missing; an agent that is not root cannot.
///
/// # Errors
/// As mount(2).
pub(super) fn guard(path: &Path) -> Result<(), AgentError> {
    if nix::unistd::geteuid().is_root() { sentry::place(path) } else { Ok(()) }
}

/// Shows at `target` what is at `staging`, with all that is mounted below; made where it is missing. Blocks.
///
/// # Errors
/// As mkdir(2), open_tree(2), move_mount(2).
pub(crate) fn bind(staging: &Path, target: &Path, wish: &MountWish) -> Result<(), AgentError> {
    match fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(AgentError::io("make the directory", target)(error));
        }
        Ok(()) | Err(_) => {}
    }
    guard(target)?;
    let MountWish { read_only, nosuid, nodev, noexec, group: _, many_readers: _ } = *wish;
    let published = || -> io::Result<()> {
        let (from, to) = (open_root(staging)?, open_root(target)?);
        let restrictions = Restrictions { read_only, nosuid, nodev, noexec };
        Tree::copy(from.as_fd(), Extent::All, restrictions)?.put(to.as_fd(), target)
    };
    published().map_err(|error| {
        // A kernel that restricts only what is in place may have been cut off in between.
        if Mounts::read().is_ok_and(|mounts| mounts.top(target).is_some()) {
            let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        AgentError::io("publish at", target)(error)
    })
}

/// What is at the path, without asking the file system that is mounted there.
fn open_root(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits()).open(path)
}

/// Takes away every mount at `target`, and the directory. Who still uses it keeps what it has open. Blocks.
///
/// # Errors
/// As umount2(2), rmdir(2).
pub(crate) fn unbind(target: &Path) -> Result<(), AgentError> {
    loop {
        let mounts = Mounts::read().map_err(AgentError::io("read", Path::new("/proc/self/mountinfo")))?;
        if mounts.top(target).is_none() {
            break;
        }
        umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| AgentError::io("unmount", target)(errno.into()))?;
    }
    sentry::remove(target)?;
    match fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(AgentError::io("remove the directory", target)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_judged_by_its_device() {
        let mounts = Mounts::parse(
            b"1 0 0:57 / /ours ro - fuse.tarbox a rw\n1 0 0:58 / /stale rw - fuse.tarbox b rw\n\
              1 0 0:9 / /other rw - tmpfs c rw\n1 0 0:57 / /covered rw - fuse.tarbox a rw\n\
              1 0 0:9 / /covered rw - tmpfs c rw\n",
        );
        let found = |path: &str| place(&mounts, "0:57", Path::new(path));
        assert_eq!(found("/ours"), Place::Ours { read_only: true });
        assert_eq!(found("/stale"), Place::Stale);
        assert_eq!(found("/other"), Place::Foreign { fs_type: "tmpfs".into() });
        assert_eq!(found("/covered"), Place::Foreign { fs_type: "tmpfs".into() });
        assert_eq!(found("/free"), Place::Free);
    }

    #[test]
    fn what_is_published_read_only_cannot_be_written_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (staging, target) = (directory.path().join("s"), directory.path().join("t"));
        fs::create_dir(&staging).expect("mkdir");
        fs::write(staging.join("f"), "x").expect("write");
        let wish = MountWish {
            read_only: true,
            nosuid: true,
            nodev: true,
            noexec: true,
            group: None,
            many_readers: false,
        };
        bind(&staging, &target, &wish).expect("bind");
        assert_eq!(fs::read_to_string(target.join("f")).expect("read"), "x");
        let refused = fs::write(target.join("f"), "y").expect_err("read-only");
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let mounts = Mounts::read().expect("table");
        let seen = mounts.top(&resolve(&target).expect("resolve")).expect("mounted").clone();
        assert!(["ro", "nosuid", "nodev", "noexec"].iter().all(|option| seen.has(option)), "{seen:?}");
        unbind(&target).expect("unbind");
        unbind(&target).expect("twice");
        assert!(!target.exists());
    }
}
