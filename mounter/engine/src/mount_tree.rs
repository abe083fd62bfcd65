//! Parts of the mount tree as descriptors: copied out of sight, given their options, and only then put in place.
//!
//! What is put in place is never seen half done, and no path is looked up twice: who changes a link meanwhile changes nothing.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::mounts::{self, Mount};

/// What is forbidden on a mount, whatever the file system below allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restrictions {
    /// Writes.
    pub read_only: bool,
    /// Set-user-id programs take effect.
    pub nosuid: bool,
    /// Device files take effect.
    pub nodev: bool,
    /// Programs are started.
    pub noexec: bool,
}

/// Source: linux/mount.h, `MOUNT_ATTR_…`.
const RDONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const NOEXEC: u64 = 0x8;

impl Restrictions {
    fn attributes(self) -> u64 {
        let all =
            [(self.read_only, RDONLY), (self.nosuid, NOSUID), (self.nodev, NODEV), (self.noexec, NOEXEC)];
        all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, attribute)| attribute).sum()
    }

    /// Those of a mount, and these beside.
    fn flags_with(self, mount: &Mount) -> MsFlags {
        let all = [
            (self.read_only, "ro", MsFlags::MS_RDONLY),
            (self.nosuid, "nosuid", MsFlags::MS_NOSUID),
            (self.nodev, "nodev", MsFlags::MS_NODEV),
            (self.noexec, "noexec", MsFlags::MS_NOEXEC),
        ];
        all.into_iter()
            .filter(|(wanted, name, _)| *wanted || mount.has(name))
            .map(|(_, _, flag)| flag)
            .collect()
    }

    /// Whether a mount has all of them.
    #[must_use]
    pub fn hold_on(&self, mount: &Mount) -> bool {
        let all =
            [(self.read_only, "ro"), (self.nosuid, "nosuid"), (self.nodev, "nodev"), (self.noexec, "noexec")];
        all.into_iter().all(|(wanted, name)| !wanted || mount.has(name))
    }
}

/// A copy of a mount, seen by nobody before it is put in place; dropped, it is gone.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// What the kernel could not be told while the copy is out of sight: mount_setattr(2) came with 5.12.
    late: Option<Restrictions>,
}

/// How much of what is mounted is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The mount that a directory lies in, and nothing that is mounted below the directory.
    One,
    /// All that is mounted below as well.
    All,
}

impl Tree {
    /// A copy of what is seen at an open directory (`O_PATH` will do), with these restrictions beside its own, and apart from its
    /// original: what is mounted below the one later on is not seen below the other.
    ///
    /// # Errors
    /// As open_tree(2), mount_setattr(2).
    pub fn copy(directory: BorrowedFd<'_>, extent: Extent, restrictions: Restrictions) -> io::Result<Self> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        flags.set(OpenTreeFlags::AT_RECURSIVE, extent == Extent::All);
        let root = open_tree(directory, "", flags)?;
        match set_attributes(root.as_fd(), restrictions.attributes()) {
            Ok(()) => Ok(Self { root, late: None }),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                Ok(Self { root, late: Some(restrictions) })
            }
            Err(error) => Err(error),
        }
    }

    /// Puts it on an open directory, which lies at `path`.
    ///
    /// # Errors
    /// As move_mount(2), mount(2). On a kernel before 5.12 it may be there with restrictions lacking, the outermost mount's last.
    pub fn put(self, directory: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.root, "", directory, "", flags)?;
        self.late.map_or(Ok(()), |restrictions| restrict_at(path, restrictions))
    }
}

/// Keeps what is mounted at a path apart from its copies elsewhere: what is mounted or unmounted below it is so here only.
///
/// # Errors
/// As mount(2).
pub fn set_apart(path: &Path) -> io::Result<()> {
    Ok(mount(None::<&str>, path, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?)
}

/// The old way, mount by mount, the outermost last: whoever finds its restrictions finds all.
fn restrict_at(path: &Path, restrictions: Restrictions) -> io::Result<()> {
    let mut points: Vec<PathBuf> = below(path)?.into_iter().map(|mount| mount.point).collect();
    points.push(path.to_owned());
    for point in points {
        let Some(there) = mounts::at(&point)? else { continue };
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | restrictions.flags_with(&there);
        mount(None::<&str>, &point, None::<&str>, flags, None::<&str>)?;
        set_apart(&point)?;
    }
    Ok(())
}

/// What is mounted below a path, the innermost and latest first.
///
/// # Errors
/// Where /proc cannot be read.
pub fn below(path: &Path) -> io::Result<Vec<Mount>> {
    let mut found: Vec<Mount> = mounts::all()?
        .into_iter()
        .filter(|mount| mount.point != path && mount.point.starts_with(path))
        .collect();
    found.reverse();
    found.sort_by_key(|mount| std::cmp::Reverse(mount.point.components().count()));
    Ok(found)
}

/// `struct mount_attr`. Source: linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn set_attributes(root: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    let wanted = MountAttr { set, clear: 0, propagation: libc::MS_PRIVATE, userns: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: an empty path, and a structure whose size is given beside it; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use nix::mount::{MntFlags, umount2};

    use super::*;

    /// Where things are mounted, taken away at the end.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().expect("a temporary directory"));
            for name in ["from/inner", "to"] {
                fs::create_dir_all(place.at(name)).expect("mkdir");
            }
            place
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().expect("path").join(name)
        }

        fn tmpfs(&self, name: &str) {
            mount(Some("t"), &self.at(name), Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
        }

        fn copy(&self, extent: Extent, late: bool) {
            let restrictions = Restrictions { read_only: true, nosuid: true, nodev: true, noexec: false };
            let from = File::open(self.at("from")).expect("open");
            let mut tree = Tree::copy(from.as_fd(), extent, restrictions).expect("copy");
            if late {
                let root =
                    Tree::copy(from.as_fd(), extent, Restrictions::default()).expect("without any").root;
                tree = Tree { root, late: Some(restrictions) };
            }
            let to = File::open(self.at("to")).expect("open");
            tree.put(to.as_fd(), &self.at("to")).expect("put");
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            for name in ["to", "from/inner"] {
                while umount2(&self.at(name), MntFlags::MNT_DETACH).is_ok() {}
            }
        }
    }

    #[test]
    fn a_copy_has_its_restrictions_everywhere_and_the_original_has_none() {
        for late in [false, true] {
            let place = Place::new();
            place.tmpfs("from/inner");
            place.copy(Extent::All, late);
            for name in ["to/f", "to/inner/f"] {
                let error = fs::write(place.at(name), "x").expect_err("read-only");
                assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{name}, late: {late}");
            }
            let inner = mounts::at(&place.at("to/inner")).expect("mounts").expect("copied");
            assert!(["ro", "nosuid", "nodev"].iter().all(|name| inner.has(name)) && !inner.has("noexec"));
            fs::write(place.at("from/inner/f"), "x").expect("the original can be written");
            assert_eq!(fs::read_to_string(place.at("to/inner/f")).expect("read"), "x");
        }
    }

    #[test]
    fn a_copy_of_one_mount_has_nothing_that_is_mounted_below_it_now_or_later() {
        let place = Place::new();
        place.tmpfs("from/inner");
        fs::write(place.at("from/inner/f"), "x").expect("write");
        place.copy(Extent::One, false);
        assert!(!place.at("to/inner/f").exists());
        assert_eq!(below(&place.at("to")).expect("mounts"), []);
    }
}
