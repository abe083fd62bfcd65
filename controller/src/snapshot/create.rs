//! Making a snapshot.

use std::time::Duration;

use tarbox_store::{Purpose, SnapshotRecord};
use tarbox_types::TenantId;
use uuid::Uuid;

use super::sealing::seal;
use crate::{
    databases::Databases,
    failure::{ControllerError, Result},
    volume,
};

/// Checkpoints of a volume whose parameters do not say how many it may have.
const MOST: usize = 1000;

/// CreateSnapshot.
#[derive(Clone, Debug)]
pub(crate) struct Create {
    /// The request's name.
    pub(crate) name: String,
    /// Of which volume.
    pub(crate) source: TenantId,
    /// From the request's secrets.
    pub(crate) database_url: Option<String>,
}

/// Makes the snapshot, unless it is made.
///
/// # Errors
/// Where the name belongs to a snapshot of another volume, where there is no such volume, or where it has as many
/// checkpoints as it may. Nothing is left then.
pub(crate) async fn create(
    databases: &Databases,
    request: Create,
    limit: Duration,
) -> Result<SnapshotRecord> {
    let Create { name, source, database_url } = request;
    let place = databases.of_volume(source, database_url.as_deref()).await?;
    let database = &*place.database;
    let new = SnapshotRecord {
        id: Uuid::new_v4(),
        tenant: source,
        request: name,
        purpose: Purpose::Snapshot,
        layer: None,
    };
    let record = database.note_snapshot(&new).await?;
    if record.tenant != source {
        return Err(ControllerError::Differs {
            name: record.request,
            what: "snapshot",
            differs: format!("`source_volume_id` was `{}`, is `{source}`", record.tenant),
        });
    }
    if record.layer.is_some() {
        return Ok(record);
    }
    let done = async {
        check_number(database, source).await?;
        seal(database, &record, limit).await
    };
    match done.await {
        Ok(layer) => Ok(SnapshotRecord { layer: Some(layer), ..record }),
        Err(error @ (ControllerError::NoVolume(_) | ControllerError::TooManyCheckpoints { .. })) => {
            database.forget_snapshot(record.id).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Whether the volume may have one more.
async fn check_number(database: &dyn tarbox_store::Database, tenant: TenantId) -> Result<()> {
    let volume = volume::find(database, tenant).await?;
    let most = volume.description.parameters.get("maxCheckpoints").and_then(|text| text.parse().ok());
    let most: usize = most.unwrap_or(MOST);
    let found = database.open_tenant(tenant).await?.layers().await?.len();
    if found < most {
        return Ok(());
    }
    Err(ControllerError::TooManyCheckpoints { tenant, found, most })
}
