//! What can be set for a mounted tenant.

use std::{path::PathBuf, time::Duration};

use tarbox_store::Compression;
use tarbox_types::Connection;

use crate::audit::AuditConfig;

/// When a change is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// Once it is in the journal.
    Writeback,
    /// Once the database has committed it.
    Writethrough,
}

/// Settings of one mounted tenant.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Memory for cached blocks, bytes.
    pub cache_bytes: u64,
    /// The journal's own directory.
    pub journal_dir: PathBuf,
    /// The journal's limit, bytes.
    pub journal_bytes: u64,
    /// Bytes of one segment.
    pub segment_bytes: u64,
    /// A change is committed after this time at the latest, while the database keeps up.
    pub flush_interval: Duration,
    /// Bound of the age of what is not committed: writers are slowed to keep it.
    pub max_lag: Duration,
    /// When a change is acknowledged.
    pub sync_mode: SyncMode,
    /// How long callers wait for a database that does not answer before they are answered with EIO; `None` = as long as it takes.
    pub give_up_after: Option<Duration>,
    /// Refuse changes.
    pub read_only: bool,
    /// Of new blocks.
    pub compression: Compression,
    /// Upper limit for inodes kept in memory; clean ones beyond it are dropped.
    pub max_inodes: usize,
    /// What is audited; by default changes, and nothing of the mount itself.
    pub audit: AuditConfig,
    /// The connection of the mount; by default an unknown one.
    pub connection: Connection,
}

impl FsConfig {
    /// Defaults of spec.md section 4, with the journal in `journal_dir`.
    #[must_use]
    pub fn new(journal_dir: PathBuf) -> Self {
        Self {
            cache_bytes: 256 << 20,
            journal_dir,
            journal_bytes: 256 << 20,
            segment_bytes: 8 << 20,
            flush_interval: Duration::from_secs(1),
            max_lag: Duration::from_secs(5),
            sync_mode: SyncMode::Writeback,
            give_up_after: None,
            read_only: false,
            compression: Compression::None,
            max_inodes: 100_000,
            audit: AuditConfig::default(),
            connection: Connection::default(),
        }
    }
}
