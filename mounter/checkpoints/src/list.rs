//! Which checkpoints a tenant has, and what becomes of a name.

use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{Database, LayerRow, Purpose, SnapshotRecord, Tag, Tenant, TenantState};
use tarbox_types::{BranchId, Layer, TenantId};
use uuid::Uuid;

use crate::error::{CheckpointError, Result};

/// Whose a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A user's.
    Checkpoint,
    /// A snapshot of CSI.
    Snapshot,
    /// Sealed so that a clone could begin there, or what a deleted snapshot left because one does.
    Base,
    /// What a restore put aside.
    BeforeRestore,
}

impl Kind {
    /// In one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Snapshot => "snapshot",
            Self::Base => "base",
            Self::BeforeRestore => "before-restore",
        }
    }

    fn of(layer: &LayerRow, record: Option<&SnapshotRecord>) -> Self {
        match record.map(|record| record.purpose) {
            Some(Purpose::Snapshot) => Self::Snapshot,
            Some(Purpose::Checkpoint) => Self::Checkpoint,
            // As the store names it; a base always has a name with a number that nobody chooses.
            None if layer.name.starts_with("before-restore") => Self::BeforeRestore,
            Some(Purpose::Base | Purpose::Nothing) | None => Self::Base,
        }
    }
}

/// A sealed layer of a tenant.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Where it is, what it is called, what it holds.
    pub layer: LayerRow,
    /// Whose it is.
    pub kind: Kind,
    /// Its id, by which CSI knows it too.
    pub id: Option<Uuid>,
    /// Further names.
    pub tags: Vec<String>,
    /// The head has come from there.
    pub is_in_line: bool,
}

/// Checkpoints of a tenant, newest first.
///
/// # Errors
/// Those of the database.
pub async fn list(database: &dyn Database, tenant: TenantId) -> Result<Vec<Checkpoint>> {
    let store = database.open_tenant(tenant).await?;
    let (layers, line) = (store.own_layers().await?, store.layers().await?);
    let page = |after, limit| database.snapshots(Some(tenant), after, limit);
    let records = tarbox_store::all(|record: &SnapshotRecord| record.id, page).await?;
    Ok(put_together(layers, &line, &records, &database.tags(tenant).await?))
}

fn place(layer: &LayerRow) -> (BranchId, Layer) {
    (layer.branch, layer.layer)
}

/// Pure.
fn put_together(
    layers: Vec<LayerRow>,
    line: &[LayerRow],
    records: &[SnapshotRecord],
    tags: &[Tag],
) -> Vec<Checkpoint> {
    let in_line: FxHashSet<_> = line.iter().map(place).collect();
    let by_place: FxHashMap<_, _> =
        records.iter().filter_map(|record| Some((place(record.layer.as_ref()?), record))).collect();
    let of_layer = |layer: LayerRow| {
        let at = place(&layer);
        let record = by_place.get(&at).copied();
        Checkpoint {
            kind: Kind::of(&layer, record),
            id: record.map(|record| record.id),
            tags: tags
                .iter()
                .filter(|tag| (tag.branch, tag.layer) == at)
                .map(|tag| tag.name.clone())
                .collect(),
            is_in_line: in_line.contains(&at),
            layer,
        }
    };
    layers.into_iter().map(of_layer).collect()
}

/// The checkpoint of a name, a tag or an id.
///
/// # Errors
/// [`CheckpointError::NotFound`].
pub async fn find(database: &dyn Database, tenant: &Tenant, name: &str) -> Result<Checkpoint> {
    let all = list(database, tenant.id).await?;
    let id = name.parse::<Uuid>().ok();
    // Names come first: a tag cannot be called like one, but a name may look like an id.
    let by_name = all.iter().position(|checkpoint| checkpoint.layer.name == name);
    let by_tag = || all.iter().position(|checkpoint| checkpoint.tags.iter().any(|tag| tag == name));
    let by_id = || all.iter().position(|checkpoint| id.is_some() && checkpoint.id == id);
    let at = by_name.or_else(by_tag).or_else(by_id);
    let found = at.and_then(|at| all.into_iter().nth(at));
    found.ok_or_else(|| CheckpointError::NotFound { tenant: tenant.name.clone(), name: name.to_owned() })
}

/// Live tenants whose heads begin at a layer: clones, or the tenant itself where it was restored.
///
/// # Errors
/// Those of the database.
pub async fn beginning_at(database: &dyn Database, layer: &LayerRow) -> Result<Vec<Tenant>> {
    let Some(owner) = database.tenant(layer.tenant).await? else { return Ok(Vec::new()) };
    let relatives = database.tenants().await?;
    let mut found = Vec::new();
    for tenant in relatives {
        if tenant.family != owner.family || tenant.state != TenantState::Live {
            continue;
        }
        let (_, view) = database.open_tenant(tenant.id).await?.head().await?;
        if view.chain[1..].iter().any(|link| (link.branch, link.layer) == place(layer)) {
            found.push(tenant);
        }
    }
    Ok(found)
}
