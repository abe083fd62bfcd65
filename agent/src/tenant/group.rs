//! A volume for a group: `volume_mount_group`. What is in it becomes the group's, and what will be made in it.
//!
//! Everything is reached by descriptors, and no link is followed: whoever works in the volume meanwhile could else choose a file of the
//! host.

use std::{
    fs::{self, File, Metadata, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use nix::{
    fcntl::{AtFlags, OFlag},
    unistd::{Gid, fchownat},
};

use crate::host::walk::each_below;

/// The group may look, write and pass through; what is made there is the group's again.
const DIRECTORY: u32 = 0o2770;
/// The group may read and write as the owner may.
const FILE: u32 = 0o660;
/// Whoever works in a volume decides how deep it is.
const DEEPEST: usize = 256;

/// Gives a volume to a group. The root is done last: where it is done, all is. Asks the file system; blocks.
///
/// # Errors
/// As chown(2), chmod(2); for a tree of more than 256 levels.
pub(crate) fn give(root: &Path, group: u32) -> io::Result<()> {
    let root = File::options()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(root)?;
    let found = root.metadata()?;
    if found.gid() == group && found.mode() & DIRECTORY == DIRECTORY {
        return Ok(());
    }
    // Native mounts are the host's.
    let is_ours = |what: &Metadata| what.dev() == found.dev();
    each_below(root.as_fd(), DEEPEST, &is_ours, &|found| hand_over(found, group))?;
    hand_over(&root, group)
}

fn hand_over(found: &File, group: u32) -> io::Result<()> {
    let what = found.metadata()?;
    fchownat(found, c"", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    if what.is_symlink() {
        return Ok(());
    }
    // A descriptor of O_PATH cannot be changed itself, and its name in /proc is the file, whatever lies at its path by now.
    let mode = what.mode() & 0o7777 | if what.is_dir() { DIRECTORY } else { FILE };
    fs::set_permissions(format!("/proc/self/fd/{}", found.as_raw_fd()), Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn seen(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).expect("there");
        (found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn all_of_it_becomes_the_groups_and_nothing_that_a_link_leads_to() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (root, outside) = (directory.path().join("volume"), directory.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).expect("mkdir");
        fs::write(root.join("a/b/f"), "").expect("write");
        fs::set_permissions(root.join("a/b/f"), Permissions::from_mode(0o4700)).expect("chmod");
        fs::write(&outside, "").expect("write");
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).expect("chmod");
        symlink(&outside, root.join("link")).expect("link");
        give(&root, 4321).expect("given");
        assert_eq!(seen(&root.join("a/b")), (4321, 0o2775 | 0o2770));
        assert_eq!(seen(&root.join("a/b/f")), (4321, 0o4760));
        assert_eq!(seen(&root).0, 4321);
        assert_eq!(seen(&root.join("link")).0, 4321);
        assert_eq!(seen(&outside), (0, 0o600));
        // Once the root is done, nothing is walked again: what people have changed since stays.
        fs::set_permissions(root.join("a/b/f"), Permissions::from_mode(0o600)).expect("chmod");
        give(&root, 4321).expect("again");
        assert_eq!(seen(&root.join("a/b/f")), (4321, 0o600));
    }

    #[test]
    fn a_tree_without_a_bottom_is_refused() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let deep = (0..DEEPEST - 1).fold(root.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).expect("mkdir");
        give(root.path(), 4321).expect("as deep as may be");
        assert_eq!(seen(&deep).0, 4321);
        fs::create_dir(deep.join("d")).expect("mkdir");
        let error = give(root.path(), 4322).expect_err("too deep").to_string();
        assert!(error.contains("too deep"), "{error}");
        assert_eq!(seen(root.path()).0, 4321, "the root is done last");
    }
}
