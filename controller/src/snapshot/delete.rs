//! Deleting a snapshot: its id is gone at once, its layer as soon as nothing begins there.

use tarbox_store::Purpose;
use uuid::Uuid;

use crate::{databases::Databases, failure::Result};

/// Deletes the snapshot: the background takes its layer away. One that is not there is no error; volumes made from it go on.
///
/// # Errors
/// Where the database cannot be reached.
pub(crate) async fn delete(databases: &Databases, id: Uuid, named: Option<&str>) -> Result<()> {
    let place = databases.of_snapshot(id, named).await?;
    let record = place.database.snapshot(id).await?;
    if record.is_some_and(|record| matches!(record.purpose, Purpose::Snapshot | Purpose::Checkpoint)) {
        place.database.drop_snapshot(id).await?;
    }
    Ok(())
}
