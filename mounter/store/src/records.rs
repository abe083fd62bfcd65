//! What is kept beside the tenants, so that whoever makes volumes and snapshots may be killed at any moment and asked again.
//!
//! A record is made before the thing that it speaks of, and taken away after it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Deserialize;
use tarbox_types::{BranchId, Layer, TenantId};
use uuid::Uuid;

use crate::{
    api::Database,
    error::{Result, StoreError},
    model::{InUse, LayerRow, Tenant, TenantState},
};

/// Which tenant a request for a volume became, or is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// The tenant.
    pub id: TenantId,
    /// The request's name; unique.
    pub request: String,
    /// What was asked for, in the words of whoever asked: JSON, of which nothing but the parameters is read here.
    pub description: String,
}

/// The parameters of a [`VolumeRecord::description`].
#[derive(Default, Deserialize)]
struct Given {
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    #[serde(default)]
    mutable: BTreeMap<String, String>,
}

/// What requests begin with that are no volume's name, but a pod's wish.
const INLINE: &str = "inline:";
/// Nor is it one where they begin with this.
const UNASKED: &str = "tenant:";

impl VolumeRecord {
    /// A volume that a pod asks for itself, which the kubelet knows by `id`.
    #[must_use]
    pub fn inline(id: &str, description: String) -> Self {
        Self { id: TenantId::random(), request: format!("{INLINE}{id}"), description }
    }

    /// Of a tenant that no request was made for.
    #[must_use]
    pub fn unasked(id: TenantId) -> Self {
        Self { id, request: format!("{UNASKED}{id}"), description: String::new() }
    }

    fn given(&self) -> Given {
        serde_json::from_str(&self.description).unwrap_or_default()
    }

    /// The value of a parameter, as it stands.
    #[must_use]
    pub fn parameter(&self, key: &str) -> Option<String> {
        let Given { mut parameters, mut mutable } = self.given();
        mutable.remove(key).or_else(|| parameters.remove(key))
    }

    /// Parameters that may change, as they stand, where they were spoken of.
    #[must_use]
    pub fn mutable_parameters(&self) -> BTreeMap<String, String> {
        self.given().mutable
    }

    /// Whether it was made by [`VolumeRecord::inline`].
    #[must_use]
    pub fn is_inline(&self) -> bool {
        self.request.starts_with(INLINE)
    }

    /// Whether no other request may have this name.
    #[must_use]
    pub fn is_reserved(request: &str) -> bool {
        [INLINE, UNASKED].iter().any(|prefix| request.starts_with(prefix))
    }
}

/// Why a layer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is a snapshot.
    Snapshot,
    /// A clone is about to begin there.
    Base,
    /// For nothing any more: the layer is to be deleted, once nothing begins there.
    Nothing,
    /// It is a checkpoint that a user made: a snapshot that goes with its tenant, whose name is unique in the tenant only.
    Checkpoint,
}

impl Purpose {
    /// As it is stored.
    pub(crate) fn number(self) -> i16 {
        match self {
            Self::Snapshot => 0,
            Self::Base => 1,
            Self::Nothing => 2,
            Self::Checkpoint => 3,
        }
    }

    /// As it was stored.
    pub(crate) fn of_number(number: i16) -> Self {
        match number {
            0 => Self::Snapshot,
            1 => Self::Base,
            3 => Self::Checkpoint,
            _ => Self::Nothing,
        }
    }
}

/// A layer that is kept for somebody, or is to be sealed. The request that seals it is its id, see [`SnapshotRecord::seal`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Id of the snapshot; of the clone where it is a base.
    pub id: Uuid,
    /// The tenant that it is taken of.
    pub tenant: TenantId,
    /// Name of the request, unique among snapshots, and among the checkpoints of a tenant; names the checkpoint.
    pub request: String,
    /// What it is for.
    pub purpose: Purpose,
    /// The layer, once it is sealed.
    pub layer: Option<LayerRow>,
}

impl SnapshotRecord {
    /// What is to be sealed, under a new id.
    #[must_use]
    pub fn new(tenant: TenantId, request: impl Into<String>, purpose: Purpose) -> Self {
        Self { id: Uuid::new_v4(), tenant, request: request.into(), purpose, layer: None }
    }

    /// How its layer is sealed, by whoever may.
    #[must_use]
    pub fn seal(&self) -> crate::Seal {
        crate::Seal { name: self.request.clone(), request: self.id.to_string() }
    }
}

/// Rows of one query of [`all`].
const PAGE: usize = 500;

/// All rows of a listing by pages; `key` is what the next page begins behind.
///
/// # Errors
/// Those of the listing.
pub async fn all<T, K, P>(key: impl Fn(&T) -> K, page: impl Fn(Option<K>, usize) -> P) -> Result<Vec<T>>
where
    P: Future<Output = Result<Vec<T>>>,
{
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let rows = page(after, PAGE).await?;
        let is_last = rows.len() < PAGE;
        after = rows.last().map(&key);
        found.extend(rows);
        if is_last {
            return Ok(found);
        }
    }
}

/// Notes a request for a volume; the record that stands, and its tenant, where that is made. One whose deletion was cut off before the
/// request's name was free gives way.
///
/// # Errors
/// Those of the database.
pub async fn note_volume(
    database: &dyn Database,
    new: &VolumeRecord,
) -> Result<(VolumeRecord, Option<Tenant>)> {
    loop {
        let record = database.note_volume(new).await?;
        match database.tenant(record.id).await? {
            Some(tenant) if tenant.state == TenantState::Deleted => database.forget_volume(record.id).await?,
            tenant => return Ok((record, tenant)),
        }
    }
}

/// Marks the tenant of a volume deleted. One that is not there is no error.
///
/// # Errors
/// [`StoreError::Held`] while it is held and `in_use` says so.
pub async fn mark_deleted(database: &dyn Database, id: TenantId, in_use: InUse) -> Result<()> {
    match database.delete_tenant(id, in_use).await {
        Ok(()) | Err(StoreError::NoTenant(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A further name of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Unique in the tenant.
    pub name: String,
    /// Branch.
    pub branch: BranchId,
    /// Layer.
    pub layer: Layer,
}

/// The right to do the background work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Whose.
    pub who: Uuid,
    /// Grows each time that somebody takes it.
    pub epoch: i64,
}

/// The records of one database.
#[async_trait]
pub trait Records: Send + Sync {
    /// Notes which tenant a request is to become; the record that stands: that of the same request, where there is one.
    async fn note_volume(&self, new: &VolumeRecord) -> Result<VolumeRecord>;

    /// What is noted of a volume.
    async fn volume(&self, id: TenantId) -> Result<Option<VolumeRecord>>;

    /// Records of volumes in the order of their ids, those beyond `after`. Fewer than `limit` = the end.
    async fn volumes(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<VolumeRecord>>;

    /// Gives a record, as it was read, another description; `false` where it has changed meanwhile.
    async fn describe_volume(&self, old: &VolumeRecord, description: &str) -> Result<bool>;

    /// Takes a volume's record away: its request's name is free. Not an error where there is none.
    async fn forget_volume(&self, id: TenantId) -> Result<()>;

    /// Live tenants in the order of their ids, those beyond `after`. Fewer than `limit` = the end.
    async fn live_tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tenant>>;

    /// Deleted tenants whose data has not been removed yet, in the order of their ids.
    async fn deleted_tenants(&self) -> Result<Vec<TenantId>>;

    /// Notes a layer that is to be sealed; the record that stands: that of the same id, or, for snapshots, of the same request,
    /// or, for checkpoints, of the same request and tenant.
    /// The holder of the tenant's lease learns of it with its next heartbeat.
    async fn note_snapshot(&self, new: &SnapshotRecord) -> Result<SnapshotRecord>;

    /// Notes which layer was sealed. Not an error where it is noted already, or the record is gone.
    async fn settle_snapshot(&self, id: Uuid, layer: &LayerRow) -> Result<()>;

    /// A record, whatever it is for.
    async fn snapshot(&self, id: Uuid) -> Result<Option<SnapshotRecord>>;

    /// Snapshots that are sealed, and checkpoints of live tenants, in the order of their ids, those beyond `after`, of one tenant or of all. Fewer than `limit` = the end.
    async fn snapshots(
        &self,
        of: Option<TenantId>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>>;

    /// Says that a layer is kept for nothing any more: the request's name is free. Not an error where there is no record.
    async fn drop_snapshot(&self, id: Uuid) -> Result<()>;

    /// Records for nothing any more, in the order of their ids, those beyond `after`.
    async fn dropped_snapshots(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<SnapshotRecord>>;

    /// Snapshots and checkpoints that are not sealed, and bases, in the order of their ids, those beyond `after`: somebody may have left them behind.
    async fn kept_layers(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<SnapshotRecord>>;

    /// Takes a record away, its layer being gone. Not an error where there is none.
    async fn forget_snapshot(&self, id: Uuid) -> Result<()>;

    /// Gives a layer of a tenant a further name; one that there is, is moved.
    async fn tag(&self, tenant: TenantId, name: &str, branch: BranchId, layer: Layer) -> Result<()>;

    /// Takes a tag away; whether it was there.
    async fn untag(&self, tenant: TenantId, name: &str) -> Result<bool>;

    /// Tags of a tenant, by name; the layer of one may be gone.
    async fn tags(&self, tenant: TenantId) -> Result<Vec<Tag>>;

    // === Who does the background work ===

    /// Takes or renews the lead of the background work; `None` while another leads. It counts for `term` from now, by the database's
    /// clock; on one machine (SQLite), as long as the [`crate::Database`] lives through which it was taken.
    async fn lead(&self, who: Uuid, term: Duration) -> Result<Option<Lead>>;

    /// Gives the lead back. Not an error if it is not theirs.
    async fn step_down(&self, who: Uuid) -> Result<()>;

    /// The same database, every write of which is refused once the lead is lost ([`crate::StoreError::NotLeading`]).
    fn led_by(&self, lead: &Lead) -> Arc<dyn crate::Database>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameters_value_is_the_changed_one_else_the_first() {
        let of = |description: &str| VolumeRecord {
            description: description.to_owned(),
            ..VolumeRecord::unasked(TenantId::random())
        };
        let record = of(r#"{"parameters":{"a":"1","b":"2"},"mutable":{"a":"3"},"later":[]}"#);
        let value = |key| record.parameter(key);
        assert_eq!((value("a"), value("b"), value("c")), (Some("3".into()), Some("2".into()), None));
        assert_eq!(record.mutable_parameters().into_iter().collect::<Vec<_>>(), [("a".into(), "3".into())]);
        for none in ["", "{}", "?", r#"{"parameters":7}"#] {
            assert_eq!(of(none).parameter("a"), None, "{none}");
        }
    }
}
