//! What is mounted where, from /proc/self/mountinfo: unlike `stat(2)` it never waits for a mount.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use super::sentry;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its own number, as in `fdinfo`: another one for each place.
    pub id: u64,
    /// Device number as `major:minor`: names the file system, wherever it is mounted.
    pub device: String,
    /// The directory of the file system that is seen there.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of this mount: `ro`, `nosuid` and so on.
    pub options: Vec<String>,
    /// Type, with its subtype.
    pub fs_type: String,
    /// Its source.
    pub source: String,
}

impl Mount {
    /// Whether it is one of our file systems.
    #[must_use]
    pub fn is_tarbox(&self) -> bool {
        self.fs_type == "fuse.tarbox"
    }

    /// Whether the mount has this option.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|has| has == option)
    }
}

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
        fs::read("/proc/self/mountinfo").map(|table| Self::parse(&table))
    }

    /// Reads the text of a table; lines that are none are left out.
    #[must_use]
    pub fn parse(table: &[u8]) -> Self {
        Self(table.split(|byte| *byte == b'\n').filter_map(line).collect())
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

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Mount] {
        &self.0
    }
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw`.
fn line(text: &[u8]) -> Option<Mount> {
    let mut fields = text.split(|byte| *byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).split(',').map(str::to_owned).collect();
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next().unwrap_or_default()).to_string_lossy().into_owned();
    Some(Mount { id, device, root, point, options, fs_type, source })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
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
