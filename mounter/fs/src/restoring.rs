//! Going back to a checkpoint while the tenant is served.
//!
//! ```text
//! hold: no change is acknowledged any more ─► commit everything ─► the database changes the head ─► this process ends (its caller's work)
//!          └─ refused: changes go on ◄────────────┘                                                   └► its successor: forget_changed
//! ```
//! What is in memory is of the head that was left, and so is every plan under way: a successor that knows nothing is right by
//! itself. What waits stays in its slot and is done by it. Only the kernel's caches outlive this; they are told what differs.

use std::{sync::Arc, time::Duration};

use tarbox_store::{StoreError, View};
use tarbox_types::{BranchId, ErrorKind, Layer};

use crate::{FileSystem, FlushError, error::FsError, shell::Shared};

/// Longest pause between two tries while the database cannot be reached.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Why a tenant stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Mounted for reading only.
    #[error("the mount is read-only")]
    ReadOnly,
    /// What was acknowledged cannot be committed.
    #[error("what was acknowledged could not be committed first")]
    Flush(#[source] FlushError),
    /// The database refuses.
    #[error("the head could not be changed")]
    Store(#[source] StoreError),
}

impl RestoreError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ReadOnly => ErrorKind::FailedPrecondition,
            Self::Flush(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

/// Lets changes go on when dropped.
struct Held<'s>(&'s Shared);

impl<'s> Held<'s> {
    fn new(shared: &'s Shared) -> Self {
        // Under the lock: what was not appended before, is not appended.
        let _core = shared.core.lock();
        shared.health.hold(true);
        Self(shared)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.health.hold(false);
    }
}

impl FileSystem {
    /// What the head looked through when this was opened.
    #[must_use]
    pub fn view(&self) -> View {
        (*self.shared.view()).clone()
    }

    /// Commits everything and puts the tenant's head on a sealed layer. Afterwards nothing is acknowledged and nothing committed any more:
    /// a successor has to go on. While the database cannot be reached it waits.
    ///
    /// # Errors
    /// [`RestoreError`]: then nothing has happened, and it serves on.
    ///
    /// # Cancel safety
    /// Not to be dropped: the head may have changed.
    pub async fn restore(&self, branch: BranchId, layer: Layer) -> Result<(), RestoreError> {
        let shared = &*self.shared;
        if shared.config.read_only {
            return Err(RestoreError::ReadOnly);
        }
        let held = Held::new(shared);
        shared.commit_to(shared.journal.last_seq()).await.map_err(RestoreError::Flush)?;
        // A commit under way has ended then, and finds nothing to do any more.
        let flusher = shared.flusher.lock().await;
        let mut pause = Duration::from_millis(50);
        loop {
            match shared.store.restore(&shared.fence, branch, layer).await {
                Ok(_) => break,
                // Perhaps it has happened: then it happens again, from the same layer, and is the same.
                Err(error @ StoreError::Unavailable { .. }) => {
                    shared.health.waiting(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(error) => return Err(RestoreError::Store(error)),
            }
        }
        drop(flusher);
        std::mem::forget(held);
        Ok(())
    }

    /// Drops from the kernel's caches what differs between an earlier head and this one.
    ///
    /// # Errors
    /// Where the database cannot be read.
    pub async fn forget_changed(&self, before: &View) -> Result<(), FsError> {
        let shared = &self.shared;
        let Some(kernel) = shared.kernel.get().map(Arc::clone) else { return Ok(()) };
        let now = shared.view();
        let changes = shared.patiently(|| shared.store.changes(before, &now)).await?;
        let (names, inodes) = (changes.entries.len(), changes.inodes.len());
        // Not on a thread that answers requests: a notification may wait for pages that requests hold.
        let told = tokio::task::spawn_blocking(move || {
            for (parent, name) in &changes.entries {
                kernel.invalidate_entry(*parent, name);
            }
            for ino in &changes.inodes {
                kernel.invalidate_inode(*ino, 0, 0);
            }
        });
        told.await.map_err(|error| FsError::Io(error.to_string()))?;
        tracing::info!(names, inodes, "the kernel has been told what a restore has changed");
        Ok(())
    }
}
