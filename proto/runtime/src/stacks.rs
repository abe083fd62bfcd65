//! What the threads of a hanging process are at, for its developers.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

/// So many dumps are kept in a directory.
const MOST: usize = 16;

/// Writes what /proc tells of a process's threads into a file of `directory`; returns its path. Reading it never waits
/// for the process.
///
/// # Errors
/// Where the directory cannot be written, or the process is gone.
pub fn dump(directory: &Path, name: &str, pid: u32) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    make_room(directory)?;
    let mut text = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let _ = writeln!(text, "== thread {}", thread.file_name().to_string_lossy());
        for part in ["comm", "wchan", "syscall", "stack", "status"] {
            let said = fs::read_to_string(thread.path().join(part)).unwrap_or_else(|error| error.to_string());
            let _ = writeln!(text, "{part}: {}", said.trim_end());
        }
    }
    let path = directory.join(format!("{name}.{pid}.txt"));
    fs::write(&path, text)?;
    Ok(path)
}

fn make_room(directory: &Path) -> io::Result<()> {
    let mut files: Vec<_> = fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort_unstable();
    let surplus = (files.len() + 1).saturating_sub(MOST);
    files.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_names_every_thread_and_old_ones_go() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for turn in 0..MOST + 3 {
            let path = dump(directory.path(), &format!("t{turn}"), std::process::id()).expect("dump");
            let text = fs::read_to_string(path).expect("read");
            assert!(text.contains("== thread") && text.contains("wchan:"), "{text}");
        }
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), MOST);
    }
}
