//! What is mounted, read from the kernel's list: never by touching a mount, which may hang.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

pub use tarbox_engine::mounts::{Mount, all, at};

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
