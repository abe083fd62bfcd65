//! Who lives: a session holds an exclusive lock on a file of its own, which the kernel frees when its process dies.
//!
//! No clock is asked. One machine only: an SQLite file on a network file system is not supported.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use parking_lot::Mutex;
use tarbox_types::SessionId;

/// Locks of this process's sessions, and a look at others'.
pub(super) struct Sessions {
    dir: PathBuf,
    held: Mutex<HashMap<SessionId, Flock<File>>>,
}

impl Sessions {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, held: Mutex::default() }
    }

    pub(super) fn path(&self, session: SessionId) -> PathBuf {
        self.dir.join(format!("{}.lock", session.0))
    }

    /// Takes the lock; it is held until [`Self::close`], or the end of this value or of the process.
    pub(super) fn open(&self, session: SessionId) -> io::Result<()> {
        let mut held = self.held.lock();
        if held.contains_key(&session) {
            return Ok(());
        }
        let path = self.path(session);
        // A process that looks whether we live holds the lock for a moment and may remove the file of a dead one:
        // what counts is the lock on the file that stands there.
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(&path)?;
            let lock =
                Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            if is_at(&lock, &path)? {
                held.insert(session, lock);
                return Ok(());
            }
        }
    }

    pub(super) fn close(&self, session: SessionId) {
        if self.held.lock().remove(&session).is_some() {
            let _ = std::fs::remove_file(self.path(session));
        }
    }

    pub(super) fn is_alive(&self, session: SessionId) -> bool {
        if self.held.lock().contains_key(&session) {
            return true;
        }
        let path = self.path(session);
        let Ok(file) = File::open(&path) else { return false };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Dead: what it left is removed while nobody else can take it.
            Ok(lock) => {
                if is_at(&lock, &path).unwrap_or(false) {
                    let _ = std::fs::remove_file(&path);
                }
                false
            }
            Err((_, Errno::EWOULDBLOCK)) => true,
            // Whoever cannot tell must not take a lease away.
            Err(_) => true,
        }
    }
}

fn is_at(file: &File, path: &std::path::Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(there) => {
            let ours = file.metadata()?;
            Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
