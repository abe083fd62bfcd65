//! Which snapshots there are.

use tarbox_store::{Database, Purpose, SnapshotRecord};
use tarbox_types::TenantId;
use uuid::Uuid;

use crate::{
    failure::{ControllerError, Result},
    volume::Page,
};

/// Which of them are asked for. An id that none of ours can have finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of them.
    All,
    /// Those of a volume.
    Of(Option<TenantId>),
    /// One, of this volume where it is named.
    One(Option<Uuid>, Option<TenantId>),
}

/// A snapshot that is made, or a checkpoint that a user made.
///
/// # Errors
/// Where there is none.
pub(crate) async fn find(database: &dyn Database, id: Uuid) -> Result<SnapshotRecord> {
    let found = database.snapshot(id).await?;
    found
        .filter(|record| {
            matches!(record.purpose, Purpose::Snapshot | Purpose::Checkpoint) && record.layer.is_some()
        })
        .ok_or_else(|| ControllerError::NoSnapshot(id.to_string()))
}

/// A page of snapshots.
pub(crate) async fn page(
    database: &dyn Database,
    wanted: Wanted,
    token: &str,
    most: usize,
) -> Result<Page<SnapshotRecord>> {
    let none = Page { entries: Vec::new(), next: None };
    let of = match wanted {
        Wanted::All => None,
        Wanted::Of(Some(tenant)) => Some(tenant),
        Wanted::Of(None) | Wanted::One(None, _) => return Ok(none),
        Wanted::One(Some(id), of) => {
            return match find(database, id).await {
                Ok(record) if of.is_none_or(|tenant| tenant == record.tenant) => {
                    Ok(Page { entries: vec![record], next: None })
                }
                Ok(_) | Err(ControllerError::NoSnapshot(_)) => Ok(none),
                Err(error) => Err(error),
            };
        }
    };
    let size = Page::<SnapshotRecord>::size(most);
    let found = database.snapshots(of, Page::<SnapshotRecord>::begin(token)?, size).await?;
    Ok(Page::of(found, size, |record| record.id.to_string()))
}
