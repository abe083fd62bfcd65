//! Making a checkpoint or a snapshot.

use std::time::Duration;

use tarbox_store::{Database, Purpose, SnapshotRecord, StoreError, TenantStore};
use tarbox_types::TenantId;

use crate::{
    error::{CheckpointError, Result},
    sealing::{Reach, seal},
};

/// Checkpoints of a tenant of which nobody has said how many it may have.
const MOST: usize = 1000;

/// Makes what is noted, unless it is made; it holds all that applications had been told was done before the call.
///
/// A snapshot that is made already is returned as it is: who asks again wants to know. A checkpoint of that name is an error:
/// who asks wants the present kept.
///
/// # Errors
/// Where the name belongs to something else, where there is no such tenant, or where it has as many as it may: nothing is left
/// then. [`CheckpointError::Unfinished`]: it goes on.
pub async fn create(
    database: &dyn Database,
    new: &SnapshotRecord,
    limit: Duration,
    reach: &dyn Reach,
) -> Result<SnapshotRecord> {
    let record = note(database, new).await?;
    if record.layer.is_some() {
        return Ok(record);
    }
    let done = async {
        check_number(database, new.tenant).await?;
        seal(database, &record, limit, reach).await
    };
    match done.await {
        Ok(layer) => Ok(SnapshotRecord { layer: Some(layer), ..record }),
        Err(error @ (CheckpointError::Gone(_) | CheckpointError::TooMany { .. })) => {
            database.forget_snapshot(record.id).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

fn taken(name: &str) -> CheckpointError {
    CheckpointError::Taken { what: "checkpoint", name: name.to_owned() }
}

/// The record to go on with: a new one, or that of an attempt which was cut off.
async fn note(database: &dyn Database, new: &SnapshotRecord) -> Result<SnapshotRecord> {
    let is_checkpoint = new.purpose == Purpose::Checkpoint;
    let store = open(database, new.tenant).await?;
    if is_checkpoint {
        check_free(database, &*store, new).await?;
    }
    loop {
        let record = database.note_snapshot(new).await?;
        if record.tenant != new.tenant {
            return Err(CheckpointError::Elsewhere {
                name: record.request,
                of: record.tenant,
                asked: new.tenant,
            });
        }
        if !is_checkpoint || record.id == new.id {
            return Ok(record);
        }
        // The layer may have got another name than the record's, which somebody else was faster to take.
        if let Some(layer) = store.sealed(&record.seal().request).await? {
            database.settle_snapshot(record.id, &layer).await?;
            return Err(taken(&record.request));
        }
        if record.layer.is_none() {
            return Ok(record);
        }
        // Its deletion was cut off between layer and record.
        database.forget_snapshot(record.id).await?;
    }
}

async fn check_free(database: &dyn Database, store: &dyn TenantStore, new: &SnapshotRecord) -> Result<()> {
    if store.layer_named(&new.request).await?.is_some() {
        return Err(taken(&new.request));
    }
    if database.tags(new.tenant).await?.iter().any(|tag| tag.name == new.request) {
        return Err(CheckpointError::Taken { what: "tag", name: new.request.clone() });
    }
    Ok(())
}

async fn open(database: &dyn Database, tenant: TenantId) -> Result<std::sync::Arc<dyn TenantStore>> {
    match database.open_tenant(tenant).await {
        Err(StoreError::NoTenant(_)) => Err(CheckpointError::Gone(tenant)),
        store => Ok(store?),
    }
}

/// How many checkpoints a tenant may have: `maxCheckpoints` of the request that it was made for, else 1000.
///
/// # Errors
/// Those of the database.
pub async fn allowed(database: &dyn Database, tenant: TenantId) -> Result<usize> {
    let asked = database.volume(tenant).await?;
    let most = asked.and_then(|record| record.parameter("maxCheckpoints")?.parse().ok());
    Ok(most.unwrap_or(MOST))
}

/// Whether the tenant may have one more.
///
/// # Errors
/// [`CheckpointError::TooMany`].
pub async fn check_number(database: &dyn Database, tenant: TenantId) -> Result<()> {
    let most = allowed(database, tenant).await?;
    let found = open(database, tenant).await?.own_layers().await?.len();
    if found < most {
        return Ok(());
    }
    Err(CheckpointError::TooMany { tenant, found, most })
}
