//! Unmounting, as root or through fusermount3, and who is in the way.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
};
use tarbox_types::ErrorKind;

use crate::failure::Failure;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ladder {
    /// Refuse while something is open there.
    Normal,
    /// Take it out of the tree at once; what is open stays open until it is closed.
    Lazy,
}

/// Whoever is in the way and cannot be seen is waited for so long: a child that has not executed its program yet, a process that ends.
const MOMENT: Duration = Duration::from_secs(2);
/// How often it is tried meanwhile.
const AGAIN: Duration = Duration::from_millis(20);

/// Unmounts.
///
/// # Errors
/// `ErrorKind::Busy`, naming the processes, where something is open there.
pub fn unmount(point: &Path, ladder: Ladder) -> Result<(), Failure> {
    let deadline = Instant::now() + MOMENT;
    while !is_unmounted(point, ladder)? {
        let users = users_of(point);
        if !users.is_empty() || Instant::now() >= deadline {
            return Err(busy(point, &users));
        }
        thread::sleep(AGAIN);
    }
    Ok(())
}

/// Tries it once; false where something is open there.
fn is_unmounted(point: &Path, ladder: Ladder) -> Result<bool, Failure> {
    let flags = match ladder {
        Ladder::Normal => MntFlags::UMOUNT_NOFOLLOW,
        Ladder::Lazy => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    match umount2(point, flags) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => is_unmounted_through_fusermount(point, ladder),
        Err(Errno::EBUSY) => Ok(false),
        Err(errno) => Err(Failure::io("unmount", point)(errno.into())),
    }
}

fn is_unmounted_through_fusermount(point: &Path, ladder: Ladder) -> Result<bool, Failure> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args((ladder == Ladder::Lazy).then_some("-z")).arg("--").arg(point);
    let output = command.output().map_err(|source| Failure::Io {
        doing: "run fusermount3, which unmounts for users other than root (package fuse3)".to_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Ok(false);
    }
    Err(Failure::Io { doing: format!("unmount {}", point.display()), source: io::Error::other(said) })
}

fn busy(point: &Path, users: &[String]) -> Failure {
    let by = match users {
        [] => "by a process that cannot be seen from here".to_owned(),
        users => format!("by {}", users.join(", ")),
    };
    let message = format!(
        "{0} is in use {by}: end it, or detach the mount with `tarbox umount --lazy {0}`",
        point.display()
    );
    Failure::refused(ErrorKind::Busy, message)
}

/// Processes with a file, a directory or a program of the mount, as `name (pid)`. Only links in /proc are read, which
/// the kernel answers from the path it knows: the mount itself is never asked.
#[must_use]
pub fn users_of(point: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut users = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if uses(&process.path(), point) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            users.push(format!("{} ({pid})", command.trim()));
        }
    }
    users
}

fn uses(process: &Path, point: &Path) -> bool {
    let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(point));
    let descriptors = fs::read_dir(process.join("fd"));
    ["cwd", "root", "exe"].into_iter().any(|link| inside(process.join(link)))
        || descriptors.is_ok_and(|mut all| all.any(|one| one.is_ok_and(|one| inside(one.path()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_open_file_below_a_directory_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = fs::canonicalize(directory.path()).expect("canonical");
        let me = format!("({})", std::process::id());
        assert!(!users_of(&path).iter().any(|user| user.ends_with(&me)));
        let _open = fs::File::create(path.join("open")).expect("create");
        assert!(users_of(&path).iter().any(|user| user.ends_with(&me)));
    }
}
