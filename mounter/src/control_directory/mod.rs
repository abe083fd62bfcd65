//! The control directory `/.tarbox`: the tenant's history, state and orders as files, and its checkpoints as directories.
//!
//! ```text
//! WholeTenant (whole.rs): every request, by the view in its node id
//!   ├─ 0      the head: tarbox_fs, as if there were nothing else
//!   ├─ 1      layout.rs (names) ─► reports.rs ─► documents.rs (what is read)
//!   │                            └► commands.rs (what is written)   snapshots.rs (names of checkpoints)
//!   └─ 2 …    views.rs ─► tarbox_fs over a sealed layer, refusing changes
//! ```
//! All that has to outlive this process lies in a directory beside the journal, and is worth nothing on another connection.

mod begun;
mod commands;
mod documents;
mod errno;
mod layout;
mod node;
mod nodes;
mod parse;
mod reports;
mod snapshots;
mod views;
mod whole;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use fuse3::Timestamp;
use parking_lot::Mutex;
use serde_json::Value;
use tarbox_checkpoints::Checkpoint;
use tarbox_fs::FileSystem;
use tarbox_runtime::Backoff;
use tarbox_store::{Database, StoreError, TenantStore};
use tarbox_types::{KernelCache, TenantId};

pub use self::whole::WholeTenant;
use self::{
    begun::Begun,
    documents::Documents,
    layout::File,
    node::{CONTROL, node},
    views::Views,
};
use crate::{control::subject::Subject, failure::Failure};

/// How soon it is noticed that somebody else has deleted a checkpoint that is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Documents that no kernel knows of go after this time.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// What it is made from.
pub struct Parts {
    /// The tenant as it is served.
    pub head: Arc<FileSystem>,
    /// What is known of the mounter.
    pub subject: Arc<Subject>,
    /// The tenant's rows.
    pub store: Arc<dyn TenantStore>,
    /// The database.
    pub database: Arc<dyn Database>,
    /// The mounter's directory.
    pub directory: PathBuf,
    /// Tells the connection from others.
    pub nonce: u64,
    /// Capacity of the block cache.
    pub cache_bytes: u64,
}

/// See the module's documentation.
pub struct ControlDirectory {
    head: Arc<FileSystem>,
    subject: Arc<Subject>,
    store: Arc<dyn TenantStore>,
    database: Arc<dyn Database>,
    tenant: TenantId,
    directory: PathBuf,
    nonce: u64,
    cache_bytes: u64,
    documents: Documents,
    views: Views,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    /// Held by the command that is being done.
    turn: tokio::sync::Mutex<Begun>,
    /// When the names in `snapshots/` changed, as far as is known.
    names: Mutex<Timestamp>,
    /// What became of the last command of each file.
    outcomes: Mutex<HashMap<File, Value>>,
}

/// Where it keeps what a successor needs, inside a mounter's directory.
#[must_use]
pub fn directory(mounter: &Path) -> PathBuf {
    mounter.join("control-directory")
}

/// The directory for this connection: what was left of another one is cleared away.
fn prepare(directory: &Path, nonce: u64) -> io::Result<()> {
    let (connection, nonce) = (directory.join("connection"), nonce.to_string());
    if fs::read_to_string(&connection).is_ok_and(|noted| noted == nonce) {
        return Ok(());
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir_all(directory)?;
    // Last: a directory without it is cleared away again.
    fs::write(connection, nonce)
}

impl ControlDirectory {
    /// Goes on with what a predecessor on the same connection has left.
    ///
    /// # Errors
    /// Where its directory cannot be read or written.
    pub fn open(parts: Parts) -> Result<Arc<Self>, Failure> {
        let Parts { head, subject, store, database, directory: mounter, nonce, cache_bytes } = parts;
        let own = directory(&mounter);
        let opened = prepare(&own, nonce).and_then(|()| {
            let views = Views::open(&own.join("views"), Arc::clone(&head), Arc::clone(&store))?;
            Ok((Documents::open(own.join("documents"))?, views))
        });
        let (documents, views) = opened.map_err(Failure::io("read or write", &own))?;
        Ok(Arc::new(Self {
            tenant: subject.note.tenant_id,
            head,
            subject,
            store,
            database,
            directory: mounter,
            nonce,
            cache_bytes,
            documents,
            views,
            kernel: OnceLock::new(),
            turn: tokio::sync::Mutex::new(Begun::open(own.join("begun.json"))),
            names: Mutex::new(Timestamp { sec: 0, nsec: 0 }),
            outcomes: Mutex::default(),
        }))
    }

    /// The kernel's caches, once a session serves it; from then on deleted checkpoints are noticed.
    pub fn attach(self: &Arc<Self>, kernel: Arc<dyn KernelCache>) {
        self.views.attach(Arc::clone(&kernel));
        if self.kernel.set(kernel).is_ok() {
            tokio::spawn(keep_house(Arc::downgrade(self)));
        }
    }

    async fn list(&self) -> Result<Vec<Checkpoint>, Failure> {
        patiently(|| async {
            match tarbox_checkpoints::list(&*self.database, self.tenant).await {
                Err(tarbox_checkpoints::CheckpointError::Store(error)) => Err(error),
                other => Ok(other),
            }
        })
        .await?
        .map_err(Failure::from)
    }
}

/// Notices what others have deleted, and removes documents that were lost.
async fn keep_house(weak: Weak<ControlDirectory>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(control) = weak.upgrade() else { return };
        let looked_at = control.views.in_use();
        if !looked_at.is_empty()
            && let Ok(layers) = control.store.own_layers().await
        {
            for sealed in looked_at {
                if !layers.iter().any(|layer| (layer.branch, layer.layer) == (sealed.branch, sealed.layer)) {
                    control.views.gone(sealed);
                }
            }
        }
        if let Some(kernel) = control.kernel.get().cloned() {
            let swept = tokio::task::spawn_blocking(move || {
                let is_known = |ino| kernel.invalidate_inode(node(CONTROL, ino), -1, 0);
                control.documents.sweep(LOST_AFTER, is_known);
            });
            let _ = swept.await;
        }
    }
}

/// Repeats a query until the database answers.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    query: impl Fn() -> F,
) -> Result<T, StoreError> {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
    loop {
        match query().await {
            Err(StoreError::Unavailable { .. }) => tokio::time::sleep(backoff.delay()).await,
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_connection_left_is_cleared_away_and_what_this_one_left_stays() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let own = directory(place.path());
        prepare(&own, 7).expect("prepared");
        fs::write(own.join("views"), "2 1 1\n").expect("write");
        prepare(&own, 7).expect("prepared");
        assert!(own.join("views").exists());
        prepare(&own, 8).expect("prepared");
        assert!(!own.join("views").exists());
    }
}
