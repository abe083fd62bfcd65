//! Deleting a volume: it is marked, so that nobody can begin to use it; its data goes in the background.

use tarbox_store::{InUse, mark_deleted};
use tarbox_types::TenantId;

use super::create;
use crate::{databases::Databases, failure::Result};

/// Marks the volume deleted, whether it is mounted or not. One that is not there is no error.
///
/// # Errors
/// Where the database cannot be reached.
pub(crate) async fn delete(databases: &Databases, id: TenantId, named: Option<&str>) -> Result<()> {
    let place = databases.of_volume(id, named).await?;
    mark_deleted(&*place.database, id, InUse::GoOn).await?;
    // Last: until now the same request's name would have found the tenant that goes.
    create::forget(databases, &place, id).await
}
