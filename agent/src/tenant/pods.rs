//! The pods that a volume is published for, noted for its mounter, whose audit names them, and for events.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::fcntl::OFlag;
use tarbox_handover::pods::{self, Pod};

/// What is read of the file: more than [`pods::with`] ever lets it become.
const BYTES_MAX: u64 = 1 << 20;

/// Notes a pod in a mounter's directory, which is the mounter's own: what lies there is replaced, never followed or waited for.
///
/// # Errors
/// As write(2), rename(2).
pub(crate) fn note(directory: &Path, pod: &Pod) -> io::Result<()> {
    let target = directory.join(pods::FILE);
    let Some(text) = pods::with(&text_of(&target), pod) else { return Ok(()) };
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

/// The pods that are noted in a mounter's directory. Blocks.
pub(crate) fn noted(directory: &Path) -> Vec<Pod> {
    pods::read(&text_of(&directory.join(pods::FILE)))
}

/// What is noted already; nothing where that is no file of ours.
fn text_of(path: &Path) -> String {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut bytes = Vec::new();
    let read = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
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
        assert_eq!(
            noted(directory.path()).iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(),
            ["u1", "u2"]
        );
        assert_eq!(fs::read_to_string(&outside).unwrap(), "as it was");
    }

    #[test]
    fn what_the_mounter_has_put_there_is_neither_read_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (file, outside) = (directory.path().join("pods"), directory.path().join("outside"));
        fs::write(&outside, "a secret word\n").unwrap();
        let pod = Pod::new("u1", "team", "a").unwrap();
        std::os::unix::fs::symlink(&outside, &file).unwrap();
        assert!(noted(directory.path()).is_empty());
        note(directory.path(), &pod).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "u1 team a\n");
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(noted(directory.path()).is_empty());
        note(directory.path(), &pod).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "u1 team a\n");
    }
}
