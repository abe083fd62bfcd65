//! What is mounted, read from the kernel's list: never by touching a mount, which may hang.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// A line of `/proc/self/mountinfo`. Source: proc(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor` of `st_dev`; names a FUSE connection under `/sys/fs/fuse/connections` by its minor number.
    pub device: String,
    /// Where.
    pub point: PathBuf,
    /// File system type, for instance `fuse.tarbox`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
}

impl Mount {
    /// Whether it is one of ours.
    #[must_use]
    pub fn is_tarbox(&self) -> bool {
        self.kind == "fuse.tarbox"
    }

    /// Whether it is served by some process through FUSE.
    #[must_use]
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind == "fuseblk" || self.kind.starts_with("fuse.")
    }
}

/// The mounts this process sees, in the kernel's order: of two at the same place the later is on top.
///
/// # Errors
/// Where /proc cannot be read.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount at exactly this absolute path.
///
/// # Errors
/// As [`all`].
pub fn at(path: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|mount| mount.point == path))
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut after_dash = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = text(after_dash.next()?);
    let source = String::from_utf8_lossy(&unescape(after_dash.next()?)).into_owned();
    Some(Mount { device, point, kind, source })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        let octal = (*byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(decoded) => {
                plain.push(decoded);
                rest = &tail[3..];
            }
            None => {
                plain.push(*byte);
                rest = tail;
            }
        }
    }
    plain
}

/// The absolute path without `.`, `..` and symbolic links, found without touching the last component: what is
/// mounted there may hang.
///
/// # Errors
/// As realpath(3) of the parent directory.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(PathBuf::from("/")),
    };
    match path.file_name() {
        // `x/.` has the file name `x`, and only `..` at the end has none.
        Some(name) if !path.as_os_str().as_bytes().ends_with(b"/..") => {
            let joined = fs::canonicalize(parent)?.join(name);
            let is_link = !is_mounted(&joined) && joined.is_symlink();
            if is_link { fs::canonicalize(joined) } else { Ok(joined) }
        }
        _ => fs::canonicalize(path),
    }
}

fn is_mounted(path: &Path) -> bool {
    at(path).is_ok_and(|mount| mount.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_with_a_space_and_optional_fields_is_read() {
        let line =
            br"36 35 0:45 / /mnt/my\040work rw,nosuid shared:1 master:2 - fuse.tarbox tenant rw,user_id=0";
        let mount = parse(line).expect("a mount");
        assert_eq!((mount.device.as_str(), mount.point.as_path()), ("0:45", Path::new("/mnt/my work")));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("fuse.tarbox", "tenant"));
        assert!(mount.is_tarbox() && mount.is_fuse());
    }

    #[test]
    fn proc_is_found_among_the_mounts() {
        assert_eq!(at(Path::new("/proc")).expect("mounts").expect("/proc").kind, "proc");
    }

    #[test]
    fn paths_are_made_absolute_through_links_and_dots() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let real = fs::canonicalize(directory.path()).expect("canonical").join("real");
        fs::create_dir(&real).expect("mkdir");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("symlink");
        for path in [&link, &real.join("."), &real.join("../real"), &directory.path().join("real/")] {
            assert_eq!(absolute(path).expect("absolute"), real, "{}", path.display());
        }
        assert_eq!(absolute(&real.join("absent")).expect("absolute"), real.join("absent"));
        assert_eq!(absolute(Path::new("/")).expect("absolute"), Path::new("/"));
    }
}
