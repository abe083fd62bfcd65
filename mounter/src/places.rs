//! Where things lie when nothing else is said: the database, the state directory.

use std::path::{Path, PathBuf};

use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::Uid,
};
use tarbox_runtime::directories;

/// Whether files there live in memory: they outlive a process, and no disk stalls a write to them.
#[must_use]
pub fn is_in_memory(path: &Path) -> bool {
    path.ancestors()
        .find_map(|ancestor| statfs(ancestor).ok())
        .is_some_and(|stat| stat.filesystem_type() == TMPFS_MAGIC)
}

/// The state directory of this user: `/run/tarbox` for root, else `$XDG_RUNTIME_DIR/tarbox`; where that does not lie
/// in memory, `/dev/shm/tarbox-<uid>`.
#[must_use]
pub fn state_dir() -> PathBuf {
    let uid = Uid::effective();
    let preferred = if uid.is_root() { Some(PathBuf::from("/run")) } else { directories::runtime() };
    preferred
        .filter(|directory| directory.is_dir() && is_in_memory(directory))
        .map_or_else(|| PathBuf::from(format!("/dev/shm/tarbox-{uid}")), |directory| directory.join("tarbox"))
}

/// `sqlite://` under the user's data directory.
///
/// # Errors
/// For a user without a home directory.
pub fn database_url() -> Result<String, directories::NoHome> {
    Ok(format!("sqlite://{}", directories::data()?.display()))
}

/// Completes what a user may leave out of a URL: `sqlite://` alone is the default place, a relative directory begins
/// at the working directory. Others are left as they are.
///
/// # Errors
/// As [`database_url`].
pub fn complete_url(url: &str, working_directory: &Path) -> Result<String, directories::NoHome> {
    match url.strip_prefix("sqlite://") {
        Some("") => database_url(),
        Some(path) if !path.starts_with('/') => {
            Ok(format!("sqlite://{}", working_directory.join(path).display()))
        }
        _ => Ok(url.to_owned()),
    }
}

/// A URL that can be shown: with stars in place of a password.
#[must_use]
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let Some(at) = rest[..authority_end].rfind('@') else { return url.to_owned() };
    match rest[..at].split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***{}", &rest[at..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_sqlite_directory_begins_at_the_working_directory() {
        let here = Path::new("/home/u");
        assert_eq!(complete_url("sqlite://db", here).expect("url"), "sqlite:///home/u/db");
        for complete in ["sqlite:///db", "postgresql://h/db", "nonsense"] {
            assert_eq!(complete_url(complete, here).expect("url"), complete);
        }
    }

    #[test]
    fn a_shown_url_has_no_password() {
        for (url, shown) in [
            ("postgresql://u:s3cret@h/db", "postgresql://u:***@h/db"),
            ("postgresql://u:p@ss@h:5432/db?x=y@z", "postgresql://u:***@h:5432/db?x=y@z"),
            ("postgresql://u@h/db", "postgresql://u@h/db"),
            ("sqlite:///a:b@c", "sqlite:///a:b@c"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
