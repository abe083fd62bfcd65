//! The pods that a volume is published for, noted for its mounter: the audit names them.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tarbox_handover::pods::{self, Pod};

/// Notes a pod in a mounter's directory.
///
/// # Errors
/// As write(2), rename(2).
pub(crate) fn note(directory: &Path, pod: &Pod) -> io::Result<()> {
    let target = directory.join(pods::FILE);
    let text = match fs::read_to_string(&target) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        text => text.unwrap_or_default(),
    };
    let Some(text) = pods::with(&text, pod) else { return Ok(()) };
    // The directory is the mounter's own: what lies there is replaced, never followed.
    let draft = directory.join(format!("{}.new", pods::FILE));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    fs::rename(&draft, &target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_is_noted_once_and_nothing_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::write(&outside, "as it was").unwrap();
        std::os::unix::fs::symlink(&outside, directory.path().join("pods.new")).unwrap();
        for (uid, name) in [("u1", "a"), ("u2", "b"), ("u1", "a")] {
            note(directory.path(), &Pod::new(uid, "team", name).unwrap()).unwrap();
        }
        assert_eq!(fs::read_to_string(directory.path().join("pods")).unwrap(), "u1 team a\nu2 team b\n");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "as it was");
    }
}
