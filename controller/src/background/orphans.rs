//! What nothing refers to and nobody would come to, found by looking through everything.

use tarbox_store::Database;
use tokio::time::Instant;

use super::of_one;
use crate::failure::Result;

/// Removes it until the time is over; what is left another look finds again.
pub(super) async fn remove(database: &dyn Database, until: Instant) -> Result<()> {
    for orphan in tarbox_checkpoints::orphans(database).await? {
        let (kind, what) = orphan.describe();
        match tarbox_checkpoints::remove(database, &orphan).await {
            Ok(removed) => tracing::warn!(kind, what, removed, "nothing referred to it"),
            Err(error) => of_one(orphan.tenant(), Err(error.into()))?,
        }
        if Instant::now() >= until {
            break;
        }
    }
    Ok(())
}
