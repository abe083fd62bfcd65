//! One family's directory: who writes to its two files, who reads.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use tarbox_types::FamilyId;

use super::{
    connect::{self, Kind, Pool},
    fault::{Fault, Outcome, Place},
};
use crate::{error::Result, trace::statement};

/// A connection that writes, with the time of its last use.
type Slot = Mutex<Option<(Connection, Instant)>>;

/// A family's files. Connections are opened when needed.
pub(super) struct Family {
    pub(super) id: FamilyId,
    url: Arc<str>,
    pub(super) dir: PathBuf,
    meta_writer: Slot,
    meta_readers: Pool,
    blocks_writer: Slot,
    blocks_readers: Pool,
    uploads: Uploads,
    /// Where the collector's slow walk over parts without headers stands.
    pub(super) parts_cursor: AtomicU64,
}

/// What was written to the blocks' WAL, and what of it is on the disk.
#[derive(Default)]
struct Uploads {
    written: AtomicU64,
    synced: AtomicU64,
    wal: Mutex<Option<Arc<File>>>,
}

pub(super) fn meta_path(dir: &Path) -> PathBuf {
    dir.join("meta.db")
}

pub(super) fn blocks_path(dir: &Path) -> PathBuf {
    dir.join("blocks.db")
}

impl Family {
    pub(super) fn new(id: FamilyId, url: Arc<str>, dir: PathBuf) -> Self {
        Self {
            id,
            url,
            meta_writer: Mutex::new(None),
            meta_readers: Pool::new(meta_path(&dir), Kind::Meta),
            blocks_writer: Mutex::new(None),
            blocks_readers: Pool::new(blocks_path(&dir), Kind::Blocks),
            uploads: Uploads::default(),
            parts_cursor: AtomicU64::new(0),
            dir,
        }
    }

    pub(super) fn settle<T>(&self, doing: &'static str, outcome: Outcome<T>) -> Result<T> {
        Place { url: &self.url, dir: &self.dir }.settle(doing, outcome)
    }

    /// Reads rows, on this thread.
    pub(super) fn read<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<T> {
        self.settle(doing, statement("sqlite", doing).in_scope(|| self.meta_readers.with(read)))
    }

    /// Reads bytes of blocks, on this thread.
    pub(super) fn read_blocks<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<T> {
        self.settle(doing, statement("sqlite", doing).in_scope(|| self.blocks_readers.with(read)))
    }

    /// Writes rows in one transaction; durable when it returns.
    pub(super) fn write<T>(
        &self,
        doing: &'static str,
        write: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<T> {
        let outcome = blocking(|| {
            let _span = statement("sqlite", doing).entered();
            with(&self.meta_writer, &meta_path(&self.dir), Kind::Meta, |connection| {
                connect::in_transaction(connection, write)
            })
        });
        self.settle(doing, outcome)
    }

    /// Writes bytes of blocks in one transaction; durable after [`Self::sync_blocks`].
    pub(super) fn write_blocks<T>(
        &self,
        doing: &'static str,
        write: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<T> {
        let outcome = blocking(|| {
            let _span = statement("sqlite", doing).entered();
            with(&self.blocks_writer, &blocks_path(&self.dir), Kind::Blocks, |connection| {
                let value = connect::in_transaction(connection, write)?;
                self.uploads.note(&self.dir)?;
                Ok(value)
            })
        });
        self.settle(doing, outcome)
    }

    /// Waits until the disk has all blocks uploaded so far. Takes no lock that an upload holds.
    pub(super) fn sync_blocks(&self) -> Result<()> {
        blocking(|| self.uploads.sync()).map_err(|error| {
            Place { url: &self.url, dir: &self.dir }
                .io(&blocks_path(&self.dir).with_extension("db-wal"), error)
        })
    }

    /// Closes connections that were not used for `age`. Unless it is zero, nobody who uses one is waited for: that may take as long as
    /// the disk does.
    pub(super) fn close_idle(&self, age: Duration) {
        self.meta_readers.close_idle(age);
        self.blocks_readers.close_idle(age);
        if let Some(mut slot) = idle(&self.meta_writer, age) {
            *slot = None;
        }
        // What an open WAL holds is synced before nobody here could do it any more.
        if let Some(mut slot) = idle(&self.blocks_writer, age)
            && self.sync_blocks().is_ok()
        {
            *slot = None;
            *self.uploads.wal.lock() = None;
        }
    }
}

/// A connection that nobody uses, nor has used for `age`.
fn idle(slot: &Slot, age: Duration) -> Option<MutexGuard<'_, Option<(Connection, Instant)>>> {
    let slot = if age.is_zero() { Some(slot.lock()) } else { slot.try_lock() };
    slot.filter(|slot| slot.as_ref().is_some_and(|(_, used)| used.elapsed() >= age))
}

fn with<T>(slot: &Slot, path: &Path, kind: Kind, run: impl FnOnce(&Connection) -> Outcome<T>) -> Outcome<T> {
    let mut slot = slot.lock();
    let (connection, _) = match slot.take() {
        Some(open) => open,
        None => (connect::open(path, kind, true)?, Instant::now()),
    };
    let outcome = run(&connection);
    if !outcome.as_ref().err().is_some_and(Fault::spoils_connection) {
        *slot = Some((connection, Instant::now()));
    }
    outcome
}

impl Uploads {
    /// Called under the writer's lock, whose connection keeps the WAL file in its place. An earlier connection that an error spoilt may have
    /// taken another file with it.
    fn note(&self, dir: &Path) -> Outcome<()> {
        let mut wal = self.wal.lock();
        let path = dir.join("blocks.db-wal");
        let failed = |error: std::io::Error| {
            rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
                Some(format!("{}: {error}", path.display())),
            )
        };
        let there = std::fs::metadata(&path).map_err(failed)?;
        let is_it = |file: &Arc<File>| {
            file.metadata().is_ok_and(|known| (known.dev(), known.ino()) == (there.dev(), there.ino()))
        };
        if !wal.as_ref().is_some_and(is_it) {
            *wal = Some(Arc::new(File::open(&path).map_err(failed)?));
        }
        self.written.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        let written = self.written.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) >= written {
            return Ok(());
        }
        let file = self.wal.lock().clone();
        if let Some(file) = file {
            file.sync_data()?;
        }
        self.synced.fetch_max(written, Ordering::Release);
        Ok(())
    }
}

/// Runs what waits for the disk without keeping a worker's other tasks waiting.
pub(super) fn blocking<T>(run: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(run)
        }
        _ => run(),
    }
}
