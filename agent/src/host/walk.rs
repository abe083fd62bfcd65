//! Walking through a tree that somebody else may change meanwhile: by descriptors, following no link.

use std::{
    fs::{File, Metadata},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    dir::Dir,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

/// Calls `each` for everything below a directory that `is_wanted`, what is in a directory before that; with a descriptor of O_PATH. Blocks.
///
/// # Errors
/// As openat(2), those of `each`; where directories are nested deeper than `levels`: each takes two descriptors, and stack.
pub(crate) fn each_below(
    directory: BorrowedFd<'_>,
    levels: usize,
    is_wanted: &dyn Fn(&Metadata) -> bool,
    each: &dyn Fn(&File) -> io::Result<()>,
) -> io::Result<()> {
    let Some(below) = levels.checked_sub(1) else {
        return Err(io::Error::other("directories are nested too deep"));
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    for entry in Dir::from_fd(openat(directory, ".", flags, Mode::empty())?)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let found =
            openat(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let found = match found {
            Ok(found) => File::from(found),
            // Removed meanwhile.
            Err(nix::Error::ENOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        let what = found.metadata()?;
        if !is_wanted(&what) {
            continue;
        }
        if what.is_dir() {
            each_below(found.as_fd(), below, is_wanted, each)?;
        }
        each(&found)?;
    }
    Ok(())
}
