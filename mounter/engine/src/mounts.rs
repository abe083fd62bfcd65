//! What is mounted where, from `/proc/self/mountinfo`: unlike `stat(2)` it never waits for a mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the table. Source: proc(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its own number, as in `fdinfo`: another one for each place.
    pub id: u64,
    /// `major:minor` of `st_dev`: names the file system, wherever it is mounted, and a FUSE connection under
    /// `/sys/fs/fuse/connections` by its minor number.
    pub device: String,
    /// The directory of the file system that is seen there.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Options of this mount: `ro`, `nosuid` and so on.
    pub options: Vec<String>,
    /// Type, with its subtype: `fuse.tarbox` for instance.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
}

impl Mount {
    /// Whether it is one of our file systems.
    #[must_use]
    pub fn is_tarbox(&self) -> bool {
        self.fs_type == "fuse.tarbox"
    }

    /// Whether it is served by some process through FUSE.
    #[must_use]
    pub fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type == "fuseblk" || self.fs_type.starts_with("fuse.")
    }

    /// Whether the mount has this option.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|has| has == option)
    }
}

/// The mounts this process sees, in the kernel's order: of two at the same place the later is on top.
///
/// # Errors
/// Where /proc cannot be read.
pub fn all() -> io::Result<Vec<Mount>> {
    std::fs::read("/proc/self/mountinfo").map(|table| parse(&table))
}

/// The topmost mount at exactly this absolute path.
///
/// # Errors
/// As [`all`].
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|mount| mount.point == path))
}

/// Reads the text of a table; lines that are none are left out.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
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
            36 35 0:57 / /a\\040b\\134x rw,nosuid shared:1 master:2 - fuse.tarbox work rw,user_id=0\n\
            38 35 0:58 / /c rw - tmpfs t rw\nnonsense\n\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        let work = &mounts[1];
        assert_eq!((work.id, work.device.as_str(), work.point.as_path()), (36, "0:57", Path::new(r"/a b\x")));
        assert_eq!((work.fs_type.as_str(), work.source.as_str()), ("fuse.tarbox", "work"));
        assert!(work.is_tarbox() && work.is_fuse() && work.has("nosuid") && !work.has("ro"));
        assert!(!mounts[2].is_fuse());
    }

    #[test]
    fn proc_is_found_and_a_plain_directory_is_not() {
        let found = at(Path::new("/proc")).expect("mounts").expect("/proc");
        assert_eq!(found.fs_type, "proc");
        assert_eq!(at(Path::new("/proc/self")).expect("mounts"), None);
    }
}
