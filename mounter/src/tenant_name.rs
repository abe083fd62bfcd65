//! The name of a tenant that nobody named: made from the mount point.

use std::{os::unix::ffi::OsStrExt, path::Path};

/// Longest readable part: with the dash and eight digits well under the 63 allowed.
const READABLE_MAX: usize = 40;

/// FNV-1a: names must be the same in every release, which no hasher of the standard library promises.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// `/home/u/My Work` → `my-work-1c9f3a02`: a valid tenant name, the same for the same absolute path, and another one
/// for another path of the same last component.
#[must_use]
pub fn of_mount_point(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let hash = fnv(bytes);
    let last = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut readable = String::new();
    for letter in last.chars() {
        let letter = if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_') { letter } else { '-' };
        if letter != '-' || !readable.ends_with('-') {
            readable.push(letter);
        }
    }
    readable.truncate(READABLE_MAX);
    let readable = readable.trim_matches(['-', '.', '_']);
    let readable = if readable.is_empty() { "tenant" } else { readable };
    format!("{readable}-{:08x}", (hash >> 32) as u32 ^ hash as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_readable() {
        for (path, readable) in [
            ("/home/u/work", "work-"),
            ("/home/u/My  Work!", "my-work-"),
            ("/", "tenant-"),
            ("/x/..hidden", "hidden-"),
            ("/x/日本", "tenant-"),
            (&format!("/x/{}", "a".repeat(255)), "aaaaaaaa"),
        ] {
            let name = of_mount_point(Path::new(path));
            assert!(name.starts_with(readable), "{path}: {name}");
            assert!((1..=63).contains(&name.len()), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b))
            );
        }
    }

    #[test]
    fn the_same_path_has_the_same_name_in_every_release_and_another_path_another() {
        assert_eq!(of_mount_point(Path::new("/home/u/work")), of_mount_point(Path::new("/home/u/work")));
        assert_ne!(of_mount_point(Path::new("/home/u/work")), of_mount_point(Path::new("/home/v/work")));
        assert_eq!(of_mount_point(Path::new("/srv/data")), "data-dc1a3595");
    }
}
