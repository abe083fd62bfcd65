//! The suite, and what only SQLite has: files, permissions, crash points.

use std::sync::Arc;

use async_trait::async_trait;
use tarbox_types::{BlockId, SessionId};
use tempfile::TempDir;

use super::database::family_files;
use crate::{Database, conformance::Site};

/// A directory of its own.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.dir.path().join("db").display())
    }

    fn family(&self, file: &str) -> rusqlite::Connection {
        let families = family_files(&self.dir.path().join("db"));
        assert_eq!(families.len(), 1);
        rusqlite::Connection::open(families[0].join(file)).unwrap()
    }
}

#[async_trait]
impl Site for Place {
    async fn open(&self) -> crate::Result<Arc<dyn Database>> {
        crate::open(&self.url()).await
    }

    async fn expire(&self, _dead: SessionId, _claimant: SessionId) {
        // Dropping the database has freed the lock, as the kernel does at a process's death.
    }

    async fn set_min_version(&self, min_version: u32) {
        let control = rusqlite::Connection::open(self.dir.path().join("db/control.db")).unwrap();
        control.execute("UPDATE schema SET min_version = ?1", [min_version]).unwrap();
    }

    async fn flip_bit(&self, block: BlockId) {
        let blocks = self.family("blocks.db");
        let block = block as i64;
        let mut data: Vec<u8> = blocks
            .query_row("SELECT data FROM block_part WHERE block = ?1", [block], |row| row.get(0))
            .unwrap();
        let middle = data.len() / 2;
        data[middle] ^= 4;
        blocks.execute("UPDATE block_part SET data = ?2 WHERE block = ?1", (block, data)).unwrap();
    }

    async fn damage(&self, sql: &str) {
        self.family("meta.db").execute_batch(sql).unwrap();
    }
}

crate::conformance::suite!(Place::new());
