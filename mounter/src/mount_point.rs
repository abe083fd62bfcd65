//! Whether a directory can be mounted on.

use std::{
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use tarbox_types::ErrorKind;

use crate::{
    failure::Failure,
    mounts::{self, Mount},
};

/// How long a stat(2) may take before a mount counts as hanging.
const STAT_TIMEOUT: Duration = Duration::from_secs(2);

/// A directory that nothing is mounted on.
///
/// # Errors
/// Says what is in the way and what to do about it.
pub fn check(path: &Path) -> Result<PathBuf, Failure> {
    let point = mounts::absolute(path).map_err(|error| absent(path, error))?;
    if let Some(mount) = mounts::at(&point).map_err(Failure::io("read", Path::new("/proc/self/mountinfo")))? {
        return Err(occupied(&point, &mount));
    }
    let metadata = stat(&point).map_err(|error| absent(&point, error))?;
    if !metadata.is_dir() {
        return Err(Failure::refused(
            ErrorKind::FailedPrecondition,
            format!("{} is not a directory: a mount point has to be one", point.display()),
        ));
    }
    fs::read_dir(&point).map_err(Failure::io("read the mount point", &point))?;
    Ok(point)
}

fn absent(path: &Path, error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let message =
            format!("the mount point {0} does not exist: make it with `mkdir -p {0}`", path.display());
        return Failure::refused(ErrorKind::NotFound, message);
    }
    Failure::io("reach the mount point", path)(error)
}

fn occupied(point: &Path, mount: &Mount) -> Failure {
    let point_shown = point.display();
    let message = match health(point) {
        Health::Serving => format!(
            "{point_shown} is a mount point already ({} `{}`): unmount it first, or take another directory",
            mount.fs_type, mount.source
        ),
        Health::Dead => format!(
            "{point_shown} is a dead FUSE mount ({} `{}`), whose server has gone: unmount it with `tarbox umount {point_shown}`, then mount again",
            mount.fs_type, mount.source
        ),
        Health::Hangs => format!(
            "{point_shown} is a mount point already ({} `{}`) and does not answer: unmount it with `tarbox umount --lazy {point_shown}`, then mount again",
            mount.fs_type, mount.source
        ),
    };
    Failure::refused(ErrorKind::Busy, message)
}

/// How something mounted answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// stat(2) was answered.
    Serving,
    /// ENOTCONN: its server has gone.
    Dead,
    /// No answer in time.
    Hangs,
}

/// Asks what is mounted there, without ever waiting longer than [`STAT_TIMEOUT`].
#[must_use]
pub fn health(point: &Path) -> Health {
    match stat(point) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOTCONN) => Health::Dead,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Health::Hangs,
        Ok(_) | Err(_) => Health::Serving,
    }
}

/// stat(2) in a thread of its own, which is left behind should it hang.
fn stat(path: &Path) -> io::Result<Metadata> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = path.to_owned();
    thread::Builder::new().name("stat".to_owned()).spawn(move || {
        let _ = sender.send(fs::metadata(path));
    })?;
    receiver.recv_timeout(STAT_TIMEOUT).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_mounted_on_is_refused_with_advice() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("file");
        fs::write(&file, "x").expect("write");
        for (path, expected) in [
            (directory.path().join("absent"), "mkdir -p"),
            (file, "is not a directory"),
            (PathBuf::from("/proc"), "is a mount point already (proc `proc`)"),
        ] {
            let text = check(&path).expect_err("refused").report().to_string();
            assert!(text.contains(expected), "{text}");
        }
        check(directory.path()).expect("a plain directory will do");
    }
}
