//! Making a snapshot.

use std::time::Duration;

use tarbox_checkpoints::{ByHeartbeat, CheckpointError};
use tarbox_store::{Purpose, SnapshotRecord};
use tarbox_types::TenantId;

use crate::{
    databases::Databases,
    failure::{ControllerError, Result},
};

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
    let new = SnapshotRecord::new(source, name, Purpose::Snapshot);
    match tarbox_checkpoints::create(&*place.database, &new, limit, &ByHeartbeat).await {
        Err(CheckpointError::Elsewhere { name, of, asked }) => Err(ControllerError::Differs {
            name,
            what: "snapshot",
            differs: format!("`source_volume_id` was `{of}`, is `{asked}`"),
        }),
        made => Ok(made?),
    }
}
