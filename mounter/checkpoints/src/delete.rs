//! Deleting: a checkpoint at once, or not at all; a snapshot's layer as soon as nothing begins there.

use tarbox_store::{Database, SnapshotRecord, StoreError, Tenant};

use crate::{
    error::{CheckpointError, Result},
    list::{Checkpoint, Kind, beginning_at},
};

/// Deletes a checkpoint with its tags, and the history that nothing else needs.
///
/// # Errors
/// [`CheckpointError::IsSnapshot`]; [`CheckpointError::InUse`], naming who begins there. Nothing has changed then.
pub async fn delete(database: &dyn Database, tenant: &Tenant, checkpoint: &Checkpoint) -> Result<()> {
    let layer = &checkpoint.layer;
    if let (Kind::Snapshot, Some(id)) = (checkpoint.kind, checkpoint.id) {
        return Err(CheckpointError::IsSnapshot { name: layer.name.clone(), id });
    }
    match database.open_tenant(tenant.id).await?.delete_layer(layer.branch, layer.layer).await {
        Ok(()) | Err(StoreError::NoLayer { .. }) => {}
        Err(StoreError::LayerInUse { .. }) => {
            let by = beginning_at(database, layer).await?;
            return Err(CheckpointError::InUse { name: layer.name.clone(), by: who(tenant, &by) });
        }
        Err(error) => return Err(error.into()),
    }
    // The layer goes first: what is cut off here leaves names of nothing, which nobody is shown.
    for tag in &checkpoint.tags {
        database.untag(tenant.id, tag).await?;
    }
    if let Some(id) = checkpoint.id {
        database.forget_snapshot(id).await?;
    }
    Ok(())
}

/// Pure.
fn who(tenant: &Tenant, beginning: &[Tenant]) -> Vec<String> {
    let of = |other: &Tenant| match other.id == tenant.id {
        true => "the tenant's own history goes on".to_owned(),
        false => format!("the clone `{}` begins", other.name),
    };
    match beginning {
        [] => vec!["an earlier line of history, which checkpoints keep, begins".to_owned()],
        some => some.iter().map(of).collect(),
    }
}

/// Takes the layer of a record that is for nothing any more away, and then the record; whether that could be done.
///
/// # Errors
/// Those of the database.
pub async fn clear(database: &dyn Database, record: &SnapshotRecord) -> Result<bool> {
    let store = match database.open_tenant(record.tenant).await {
        // Its layers went with it.
        Err(StoreError::NoTenant(_)) => {
            database.forget_snapshot(record.id).await?;
            return Ok(true);
        }
        store => store?,
    };
    let layer = match &record.layer {
        Some(layer) => Some(layer.clone()),
        None => store.sealed(&record.seal().request).await?,
    };
    if let Some(layer) = layer {
        match store.delete_layer(layer.branch, layer.layer).await {
            Ok(()) | Err(StoreError::NoLayer { .. }) => {}
            Err(StoreError::LayerInUse { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    database.forget_snapshot(record.id).await?;
    Ok(true)
}

/// Does so for every such record, until all were looked at or `is_over`; what could not go yet, stays.
///
/// # Errors
/// Those of the database.
pub async fn clear_dropped(
    database: &dyn Database,
    is_over: &(dyn Fn() -> bool + Send + Sync),
) -> Result<Vec<SnapshotRecord>> {
    let page = |after, limit| database.dropped_snapshots(after, limit);
    let mut gone = Vec::new();
    for record in tarbox_store::all(|record: &SnapshotRecord| record.id, page).await? {
        if clear(database, &record).await? {
            gone.push(record);
        }
        if is_over() {
            break;
        }
    }
    Ok(gone)
}
