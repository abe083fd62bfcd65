//! Layers that are kept for nothing any more.

use tarbox_store::Database;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{failure::Result, snapshot};

/// Records looked at by one query.
const PAGE: usize = 100;

/// Deletes layers that are kept for nothing, where nothing begins there.
pub(super) async fn clear(database: &dyn Database, until: Instant) -> Result<()> {
    let mut after: Option<Uuid> = None;
    loop {
        let page = database.dropped_snapshots(after, PAGE).await?;
        for record in &page {
            if snapshot::clear(database, record).await? {
                tracing::info!(snapshot = %record.id, tenant = %record.tenant, "a layer that nobody keeps is gone");
            }
            if Instant::now() >= until {
                return Ok(());
            }
        }
        after = page.last().map(|record| record.id);
        if page.len() < PAGE {
            return Ok(());
        }
    }
}
