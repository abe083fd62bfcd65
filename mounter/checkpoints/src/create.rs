//! Making a checkpoint or a snapshot.

use std::time::Duration;

use tarbox_store::{Database, Purpose, SnapshotRecord, StoreError, TenantStore, all};
use tarbox_types::{ByteSize, TenantId};

use crate::{
    error::{CheckpointError, Result},
    sealing::{Reach, seal},
};

/// Checkpoints of a tenant of which nobody has said how many it may have.
const MOST: usize = 1000;

/// Makes what is noted, unless it is made; it holds all that applications had been told was done before the call.
///
/// A snapshot that is made already is returned as it is: who asks again wants to know. So is a checkpoint of the same id; one of that
/// name and another id is an error, as who asks for it wants the present kept.
///
/// # Errors
/// Where the name belongs to something else, where there is no such tenant, or where it has as many, or as much, as it may: nothing is
/// left then. [`CheckpointError::Unfinished`]: it goes on.
pub async fn create(
    database: &dyn Database,
    new: &SnapshotRecord,
    limit: Duration,
    reach: &dyn Reach,
) -> Result<SnapshotRecord> {
    let store = open(database, new.tenant).await?;
    let error = match make(database, &*store, new, limit, reach).await {
        Err(error) => error,
        made => return made,
    };
    // What is in the way may be itself: its holder seals it as soon as it is noted, whoever noted it is answered or not.
    if let Some(layer) = store.sealed(&new.seal().request).await? {
        database.settle_snapshot(new.id, &layer).await?;
        return Ok(SnapshotRecord { layer: Some(layer), ..new.clone() });
    }
    if matches!(error, CheckpointError::Gone(_)) {
        database.forget_snapshot(new.id).await?;
    }
    Err(error)
}

async fn make(
    database: &dyn Database,
    store: &dyn TenantStore,
    new: &SnapshotRecord,
    limit: Duration,
    reach: &dyn Reach,
) -> Result<SnapshotRecord> {
    if new.purpose == Purpose::Checkpoint {
        check_free(database, store, new).await?;
    }
    admit(database, new).await?;
    let record = note(database, store, new).await?;
    if record.layer.is_some() {
        return Ok(record);
    }
    let layer = seal(database, &record, limit, reach).await?;
    Ok(SnapshotRecord { layer: Some(layer), ..record })
}

/// Whether there is room for it; what was noted before has been admitted. Nothing is noted before: a heartbeat would have it sealed.
async fn admit(database: &dyn Database, new: &SnapshotRecord) -> Result<()> {
    match check_room(database, new.tenant).await {
        Err(full @ (CheckpointError::TooMany { .. } | CheckpointError::HistoryFull { .. })) => {
            if is_noted(database, new).await? { Ok(()) } else { Err(full) }
        }
        checked => checked,
    }
}

/// Whether an earlier call has noted it, made or not.
async fn is_noted(database: &dyn Database, new: &SnapshotRecord) -> Result<bool> {
    let is_it = |record: &SnapshotRecord| {
        record.id == new.id
            || (record.tenant == new.tenant && record.purpose == new.purpose && record.request == new.request)
    };
    let made = all(
        |record: &SnapshotRecord| record.id,
        |after, limit| database.snapshots(Some(new.tenant), after, limit),
    );
    let begun = all(|record: &SnapshotRecord| record.id, |after, limit| database.kept_layers(after, limit));
    Ok(made.await?.iter().any(is_it) || begun.await?.iter().any(is_it))
}

fn taken(name: &str) -> CheckpointError {
    CheckpointError::Taken { what: "checkpoint", name: name.to_owned() }
}

/// The record to go on with: a new one, or that of an attempt which was cut off.
async fn note(
    database: &dyn Database,
    store: &dyn TenantStore,
    new: &SnapshotRecord,
) -> Result<SnapshotRecord> {
    loop {
        let record = database.note_snapshot(new).await?;
        if record.tenant != new.tenant {
            return Err(CheckpointError::Elsewhere {
                name: record.request,
                of: record.tenant,
                asked: new.tenant,
            });
        }
        if new.purpose != Purpose::Checkpoint || record.id == new.id {
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

/// How many bytes the history of a tenant may take: `historyQuota` of the request that it was made for, else as many as its head; 0 = unlimited.
///
/// # Errors
/// Those of the database.
pub async fn history_quota(database: &dyn Database, tenant: TenantId) -> Result<u64> {
    let asked = database.volume(tenant).await?.and_then(|record| record.parameter("historyQuota"));
    if let Some(quota) = asked.and_then(|text| text.parse::<ByteSize>().ok()) {
        return Ok(quota.bytes());
    }
    let tenant = database.tenant(tenant).await?.ok_or(CheckpointError::Gone(tenant))?;
    Ok(tenant.limits.bytes)
}

/// Whether the tenant may have one more checkpoint.
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

/// Whether the tenant may have one more checkpoint, and a longer history.
///
/// # Errors
/// [`CheckpointError::TooMany`], [`CheckpointError::HistoryFull`].
async fn check_room(database: &dyn Database, tenant: TenantId) -> Result<()> {
    check_number(database, tenant).await?;
    let quota = history_quota(database, tenant).await?;
    if quota == 0 {
        return Ok(());
    }
    let used = open(database, tenant).await?.history_bytes().await?;
    if used < quota {
        return Ok(());
    }
    Err(CheckpointError::HistoryFull { tenant, used: ByteSize(used), quota: ByteSize(quota) })
}
