//! Much of something, made and verified quickly.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::rng::Rng;

const FILES_PER_DIRECTORY: u64 = 1000;
const CHUNK: u64 = 1 << 20;

/// Makes so many small files, a thousand to a directory.
///
/// # Panics
/// If one cannot be made.
pub fn make_files(at: &Path, count: u64) {
    for i in 0..count {
        let dir = at.join(format!("d{}", i / FILES_PER_DIRECTORY));
        if i % FILES_PER_DIRECTORY == 0 {
            fs::create_dir(&dir).expect("mkdir");
        }
        fs::write(dir.join(format!("f{i}")), i.to_le_bytes()).expect("write a small file");
    }
}

/// Lists and stats all below; how many files there are.
///
/// # Panics
/// If something cannot be listed.
#[must_use]
pub fn count_files(at: &Path) -> u64 {
    fs::read_dir(at)
        .expect("list")
        .map(|entry| {
            let entry = entry.expect("entry");
            if entry.metadata().expect("stat").is_dir() { count_files(&entry.path()) } else { 1 }
        })
        .sum()
}

/// Writes a file of so many bytes (whole MiB), each MiB another.
///
/// # Panics
/// If it cannot be written.
pub fn write_large(path: &Path, len: u64) {
    let file = File::create(path).expect("create");
    for i in 0..len / CHUNK {
        file.write_all_at(&Rng::new(i).bytes(CHUNK as usize), i * CHUNK).expect("write");
    }
    file.sync_all().expect("fsync");
}

/// Reads such a file and compares.
///
/// # Panics
/// If it is not what was written.
pub fn verify_large(path: &Path, len: u64) {
    let file = File::open(path).expect("open");
    assert_eq!(file.metadata().expect("stat").len(), len);
    let mut chunk = vec![0; CHUNK as usize];
    for i in 0..len / CHUNK {
        file.read_exact_at(&mut chunk, i * CHUNK).expect("read");
        assert!(chunk == Rng::new(i).bytes(CHUNK as usize), "MiB {i} of {}", path.display());
    }
}
