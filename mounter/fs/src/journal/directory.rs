//! The directory of a journal: locking it, listing it, setting it aside.

use std::{
    fs::{DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use tarbox_types::Epoch;

use super::{
    JournalError, Reason, Rejected,
    control::{self, Control},
    format::{self, HeaderFound, SEGMENT_HEADER},
    segment::{DirectoryLock, LockedDirectory, io_error},
};

pub(super) fn lock_directory(dir: &Path) -> Result<DirectoryLock, JournalError> {
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
        let file = File::open(dir).map_err(io_error("open", dir))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", dir)(source)),
        }
        // Another process may have removed or renamed it between opening and locking.
        let ours = file.metadata().map_err(io_error("stat", dir))?;
        match std::fs::metadata(dir) {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => {
                return Ok(Arc::new(LockedDirectory(file)));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("stat", dir)(error)),
        }
    }
}

/// The control file and the segment files; `None` where no journal is there. Unfinished files go.
pub(super) fn look(dir: &Path) -> Result<Option<(Control, Vec<PathBuf>)>, JournalError> {
    let files = segment_files(dir)?;
    match control::read(dir)? {
        Some(control) => Ok(Some((control, files))),
        None => match files.into_iter().next() {
            Some(file) => {
                Err(JournalError::Damaged { file, offset: 0, seq: 0, what: "its control file is missing" })
            }
            None => Ok(None),
        },
    }
}

pub(super) fn segment_files(dir: &Path) -> Result<Vec<PathBuf>, JournalError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".new") {
            // Not renamed to its own name yet: it was never in use.
            std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
        } else if name.starts_with("segment-") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Renames the directory, unless it holds nothing that anybody could miss, and makes an empty one in its place.
pub(super) fn set_aside(
    dir: &Path,
    lock: DirectoryLock,
    files: &[PathBuf],
    epoch: Epoch,
    reason: Reason,
) -> Result<(DirectoryLock, Option<Rejected>), JournalError> {
    if !matches!(reason, Reason::Gap { .. }) && !files.iter().any(|file| holds_something(file)) {
        for path in files.iter().cloned().chain([control::path_in(dir)]) {
            std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        return Ok((lock, None));
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let free = (1..).map(|n| dir.with_file_name(format!("{name}.rejected-{epoch}-{n}"))).find(|path| {
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    });
    let path = free.expect("an unending range");
    std::fs::rename(dir, &path).map_err(io_error("set aside", dir))?;
    drop(lock);
    Ok((lock_directory(dir)?, Some(Rejected { path, reason })))
}

/// Whether a segment file is anything but a spare one, or one in use without a frame.
fn holds_something(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let mut head = [0; SEGMENT_HEADER + 8];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut head, 0));
    match (read, format::decode_header(&head)) {
        (Ok(()), HeaderFound::Spare) => false,
        (Ok(()), HeaderFound::Used(_)) => format::word(&head, SEGMENT_HEADER) != 0,
        _ => true,
    }
}

/// The highest number in the name of a segment file.
pub(super) fn highest_file(dir: &Path) -> Result<u32, JournalError> {
    let number = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        u32::from_str_radix(name.strip_prefix("segment-")?, 16).ok()
    };
    Ok(segment_files(dir)?.iter().filter_map(number).filter(|&number| number < u32::MAX).max().unwrap_or(0))
}
