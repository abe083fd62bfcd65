//! What is mounted where, from `/proc/self/mountinfo`: unlike `stat(2)` it never waits for a mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of the file system mounted on exactly `path`, if there is one; of several the topmost.
pub(super) fn mounted_at(path: &Path) -> Option<String> {
    let wanted = std::path::absolute(path).ok()?;
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    // Later lines are mounted over earlier ones.
    let mut found = table.split(|byte| *byte == b'\n').filter_map(parse).filter(|(at, _)| *at == wanted);
    found.next_back().map(|(_, fstype)| fstype)
}

/// Mount point and type of one line.
fn parse(line: &[u8]) -> Option<(PathBuf, String)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mountpoint = unescape(fields.nth(4)?);
    let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some((mountpoint, String::from_utf8_lossy(fstype).into_owned()))
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
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
    fn a_line_with_optional_fields_and_escapes_is_read() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - fuse.tarbox src rw,errors=continue";
        assert_eq!(parse(line), Some((PathBuf::from(r"/mnt 2\x"), "fuse.tarbox".to_owned())));
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn proc_is_found_and_a_plain_directory_is_not() {
        assert_eq!(mounted_at(Path::new("/proc")).as_deref(), Some("proc"));
        assert_eq!(mounted_at(Path::new("/proc/self")), None);
    }
}
