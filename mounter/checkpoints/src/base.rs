//! Where a clone of the present begins.

use std::time::Duration;

use tarbox_store::{Database, Purpose, SnapshotRecord};
use tarbox_types::TenantId;

use crate::{
    error::Result,
    sealing::{Reach, seal},
};

/// Seals a layer of `source` for a clone that is to become `clone`; it holds all that was acknowledged before the call. Once the clone is
/// made, it keeps the layer itself: [`tarbox_store::Records::drop_snapshot`] of its id then.
///
/// # Errors
/// Those of [`seal`].
pub async fn base(
    database: &dyn Database,
    source: TenantId,
    clone: TenantId,
    limit: Duration,
    reach: &dyn Reach,
) -> Result<SnapshotRecord> {
    let base = SnapshotRecord {
        id: clone.0,
        tenant: source,
        request: format!("clone-{clone}"),
        purpose: Purpose::Base,
        layer: None,
    };
    let noted = database.note_snapshot(&base).await?;
    let layer = seal(database, &noted, limit, reach).await?;
    Ok(SnapshotRecord { layer: Some(layer), ..noted })
}
