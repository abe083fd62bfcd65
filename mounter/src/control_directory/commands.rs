//! What is done when something is written. Commands take turns; each write(2) is one, and is answered when it is done.
//!
//! A request that comes again, because a process died over it, is known by its number: a checkpoint is made by the id that
//! follows from it, and what cannot be seen in the database stands in a note (`begun.rs`).

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tarbox_checkpoints::{CheckpointError, Reach, check_number, create, delete, find};
use tarbox_fs::{FileSystem, Sealed};
use tarbox_store::{Flattened, Holder, Purpose, Seal, SnapshotRecord, StoreError};
use tarbox_types::{Chain, ErrorKind};
use uuid::Uuid;

use super::{
    ControlDirectory,
    begun::What,
    layout::File,
    parse::{Named, New},
    patiently,
};
use crate::{failure::Failure, restore};

/// One attempt at a checkpoint; until then its commit is waited for, and the database where it cannot be reached.
const ATTEMPT: Duration = Duration::from_secs(60);
/// How long an earlier restore may take to be finished before the next one is refused.
const FINISH_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Batches of one collection.
const BATCHES: usize = 200;

/// The mounter seals by itself what it is asked for here.
struct ByItself<'f>(&'f FileSystem);

#[async_trait]
impl Reach for ByItself<'_> {
    async fn ask(&self, _: &Holder, seal: &Seal) {
        if let Err(error) = self.0.seal(seal).await {
            tracing::debug!(error = %Chain(&error), "a checkpoint is not made yet");
        }
    }
}

impl ControlDirectory {
    /// Does what is written into a file; `request` is the same when it comes again. What became of it is kept, to be read there.
    ///
    /// # Errors
    /// Why nothing was done.
    pub(super) async fn command(&self, file: File, request: Uuid, data: &[u8]) -> Result<(), Failure> {
        let mut turn = self.turn.lock().await;
        let done = match file {
            File::New => self.make(request, data).await,
            File::Switch => self.switch(&mut turn, request, data).await,
            File::Drop => self.delete(&mut turn, request, data).await,
            File::Flush => self.flush().await,
            File::Gc => self.collect().await,
            File::Current
            | File::List
            | File::Tree
            | File::Usage
            | File::Performance
            | File::Cache
            | File::Recent
            | File::Tag => Err(Failure::refused(ErrorKind::PermissionDenied, "nothing can be written there")),
        };
        let outcome = match &done {
            Ok(value) => value.clone(),
            Err(failure) => {
                let message = failure.report().to_string();
                tracing::info!(file = file.path(), reason = message, "a command was refused");
                json!({ "error": message })
            }
        };
        self.outcomes.lock().insert(file, outcome);
        done.map(drop)
    }

    /// A checkpoint of all that was acknowledged before.
    async fn make(&self, request: Uuid, data: &[u8]) -> Result<Value, Failure> {
        let New { name, tags } = New::parse(data)?;
        let record = SnapshotRecord {
            id: request,
            ..SnapshotRecord::new(self.tenant, name.clone(), Purpose::Checkpoint)
        };
        let (store, database) = (&self.store, &*self.database);
        // Made under a predecessor: then its name is taken, by this very request.
        let seal = record.seal();
        let made = patiently(|| store.sealed(&seal.request)).await?;
        let layer = match made {
            Some(layer) => {
                patiently(|| database.settle_snapshot(record.id, &layer)).await?;
                layer
            }
            None => {
                self.check_tags(&tags).await?;
                self.create(&record).await?
            }
        };
        for tag in &tags {
            patiently(|| database.tag(self.tenant, tag, layer.branch, layer.layer)).await?;
        }
        self.names_have_changed(None).await;
        Ok(json!({ "made": name, "tags": tags }))
    }

    async fn create(&self, record: &SnapshotRecord) -> Result<tarbox_store::LayerRow, Failure> {
        let (seal, database) = (record.seal(), &*self.database);
        loop {
            let attempt = create(database, record, ATTEMPT, &ByItself(&self.head)).await;
            if let Ok(SnapshotRecord { layer: Some(layer), .. }) = attempt {
                return Ok(layer);
            }
            // Made beside it, for this very request: from the journal of a process that died, or for a heartbeat.
            if let Some(layer) = patiently(|| self.store.sealed(&seal.request)).await? {
                patiently(|| database.note_snapshot(record)).await?;
                patiently(|| database.settle_snapshot(record.id, &layer)).await?;
                return Ok(layer);
            }
            match attempt {
                // It goes on.
                Ok(_) | Err(CheckpointError::Unfinished { .. }) => {}
                Err(CheckpointError::Store(StoreError::Unavailable { .. })) => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn check_tags(&self, tags: &[String]) -> Result<(), Failure> {
        for tag in tags {
            if patiently(|| self.store.layer_named(tag)).await?.is_some() {
                return Err(CheckpointError::Taken { what: "checkpoint", name: tag.clone() }.into());
            }
        }
        Ok(())
    }

    /// Puts the tenant back to a checkpoint. Where it succeeds, this process ends, and its successor answers the request.
    async fn switch(&self, turn: &mut super::Begun, request: Uuid, data: &[u8]) -> Result<Value, Failure> {
        let Named { name } = Named::parse(data)?;
        self.until_finished().await?;
        let head = self.head.view().chain[0].branch;
        if matches!(turn.of(request), Some(What::Switch { from }) if from != head) {
            // One more is what was there before.
            self.names_have_changed(None).await;
            return Ok(json!({ "switched": name }));
        }
        let tenant = self.tenant().await?;
        let layer = find(&*self.database, &tenant, &name).await?.layer;
        // What is there now becomes one more.
        check_number(&*self.database, tenant.id).await?;
        self.begin(turn, request, What::Switch { from: head })?;
        restore::begin(&self.subject, &self.directory, layer.branch, layer.layer).await?;
        std::future::pending().await
    }

    /// Waits until the kernel has been told what an earlier restore has changed.
    async fn until_finished(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + FINISH_WITHIN;
        while restore::left_unfinished(&self.directory).is_some() {
            if Instant::now() >= deadline {
                return Err(Failure::refused(
                    ErrorKind::Concurrent,
                    "an earlier restore is still being finished",
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn delete(&self, turn: &mut super::Begun, request: Uuid, data: &[u8]) -> Result<Value, Failure> {
        let Named { name } = Named::parse(data)?;
        if let Some(What::Drop { branch, layer }) = turn.of(request)
            && matches!(patiently(|| self.store.view(branch, layer)).await, Err(StoreError::NoLayer { .. }))
        {
            self.views.gone(Sealed { branch, layer });
            self.names_have_changed(Some(name.clone())).await;
            return Ok(json!({ "dropped": name }));
        }
        let tenant = self.tenant().await?;
        let checkpoint = find(&*self.database, &tenant, &name).await?;
        let sealed = Sealed { branch: checkpoint.layer.branch, layer: checkpoint.layer.layer };
        self.begin(turn, request, What::Drop { branch: sealed.branch, layer: sealed.layer })?;
        delete(&*self.database, &tenant, &checkpoint).await?;
        self.views.gone(sealed);
        self.names_have_changed(Some(checkpoint.layer.name.clone())).await;
        Ok(json!({ "dropped": checkpoint.layer.name }))
    }

    fn begin(&self, turn: &mut super::Begun, request: Uuid, what: What) -> Result<(), Failure> {
        turn.note(request, what).map_err(Failure::io("write a note in", Path::new(&self.directory)))
    }

    /// Commits all that was acknowledged.
    async fn flush(&self) -> Result<Value, Failure> {
        let committed = self.head.flush().await.map_err(|error| Failure::Part {
            kind: error.kind(),
            doing: "commit".to_owned(),
            source: error.into(),
        })?;
        Ok(json!({ "committed": committed }))
    }

    /// Removes what nothing refers to any more: one round of what otherwise happens in the background.
    async fn collect(&self) -> Result<Value, Failure> {
        let unlinked = self.head.remove_unlinked().await.map_err(|error| Failure::Part {
            kind: error.kind(),
            doing: "remove unlinked files".to_owned(),
            source: error.into(),
        })?;
        // What was just removed is known to the database.
        self.flush().await?;
        let mut collected = 0;
        for _ in 0..BATCHES {
            match patiently(|| self.store.collect()).await? {
                0 => break,
                more => collected += more,
            }
        }
        let mut from = None;
        for _ in 0..BATCHES {
            from = match patiently(|| self.store.flatten(from.clone())).await? {
                Flattened::Nothing => break,
                Flattened::More(at) => Some(at),
                Flattened::Done => None,
            };
        }
        Ok(json!({ "unlinked_files": unlinked, "collected": collected }))
    }

    async fn tenant(&self) -> Result<Arc<tarbox_store::Tenant>, Failure> {
        let tenant = patiently(|| self.database.tenant(self.tenant)).await?;
        let tenant = tenant.ok_or_else(|| StoreError::NoTenant(self.tenant.to_string()))?;
        Ok(Arc::new(tenant))
    }
}
