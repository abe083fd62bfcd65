//! Deleting a snapshot: its id is gone at once, its layer as soon as nothing begins there.

use tarbox_store::{Database, Purpose, SnapshotRecord, StoreError};
use uuid::Uuid;

use crate::{databases::Databases, failure::Result};

/// Deletes the snapshot: the background takes its layer away. One that is not there is no error; volumes made from it go on.
///
/// # Errors
/// Where the database cannot be reached.
pub(crate) async fn delete(databases: &Databases, id: Uuid, named: Option<&str>) -> Result<()> {
    let place = databases.of_request(named).await?;
    let record = place.database.snapshot(id).await?;
    if record.is_some_and(|record| record.purpose == Purpose::Snapshot) {
        place.database.drop_snapshot(id).await?;
    }
    Ok(())
}

/// Takes the layer of a record that is for nothing any more away, and then the record; whether that could be done.
pub(crate) async fn clear(database: &dyn Database, record: &SnapshotRecord) -> Result<bool> {
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
