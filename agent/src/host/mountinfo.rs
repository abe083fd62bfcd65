//! What is mounted where, from /proc/self/mountinfo: unlike `stat(2)` it never waits for a mount.

use std::{io, path::Path};

use tarbox_engine::mounts;

use super::sentry;

pub use tarbox_engine::mounts::Mount;

/// All mounts that this process sees, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Reads the table, without the sentries that lie under our mounts: they are the ground.
    ///
    /// # Errors
    /// Where /proc is not there.
    pub fn read() -> io::Result<Self> {
        let Self(mut mounts) = Self::read_all()?;
        mounts.retain(|mount| !sentry::is_sentry(mount));
        Ok(Self(mounts))
    }

    /// Reads the table with all that is in it.
    ///
    /// # Errors
    /// Where /proc is not there.
    pub(super) fn read_all() -> io::Result<Self> {
        mounts::all().map(Self)
    }

    /// Reads the text of a table; lines that are none are left out.
    #[must_use]
    pub fn parse(table: &[u8]) -> Self {
        Self(mounts::parse(table))
    }

    /// What is mounted on exactly this path, the topmost last.
    pub fn at<'m>(&'m self, path: &'m Path) -> impl DoubleEndedIterator<Item = &'m Mount> {
        self.0.iter().filter(move |mount| mount.point == path)
    }

    /// What is seen at exactly this path: the topmost mount there.
    #[must_use]
    pub fn top(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rfind(|mount| mount.point == path)
    }

    /// Every place where a device is mounted.
    pub fn of_device<'m>(&'m self, device: &'m str) -> impl DoubleEndedIterator<Item = &'m Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }

    /// Every place where the same file system is mounted. Its number alone does not say so: the kernel gives that of one that is
    /// mounted nowhere any more to the next.
    pub fn same_as<'m>(&'m self, mount: &'m Mount) -> impl DoubleEndedIterator<Item = &'m Mount> {
        let is_same = |other: &&Mount| other.source == mount.source && other.fs_type == mount.fs_type;
        self.of_device(&mount.device).filter(is_same)
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Mount] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_optional_fields_and_escapes() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
            36 35 0:57 / /a\\040b rw,nosuid shared:1 master:2 - fuse.tarbox work rw,user_id=0\n\
            37 35 0:57 / /c ro - fuse.tarbox work rw\n\
            38 35 0:58 / /c rw - tmpfs t rw\nnonsense\n";
        let mounts = Mounts::parse(table);
        assert_eq!(mounts.all().len(), 4);
        let staged = mounts.top(Path::new("/a b")).expect("with a blank");
        assert!(staged.is_tarbox() && staged.has("nosuid") && !staged.has("ro"));
        assert_eq!((staged.device.as_str(), staged.source.as_str()), ("0:57", "work"));
        assert_eq!(mounts.of_device("0:57").count(), 2);
        assert_eq!(mounts.top(Path::new("/c")).map(|mount| mount.fs_type.as_str()), Some("tmpfs"));
        assert_eq!(mounts.at(Path::new("/c")).count(), 2);
        assert_eq!(mounts.top(Path::new("/d")), None);
    }

    #[test]
    fn this_machine_has_a_proc() {
        assert_eq!(
            Mounts::read().expect("table").top(Path::new("/proc")).map(|m| m.fs_type.clone()),
            Some("proc".into())
        );
    }
}
