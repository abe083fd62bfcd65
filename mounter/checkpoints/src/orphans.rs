//! What nothing refers to, and nobody would ever come to: left by a program that was killed, by a bug, or by somebody's own hand.
//!
//! Found without locks, so by what cannot be on its way: whoever makes a layer has a record of it before, and keeps it until the layer is
//! gone; so layers are listed first, and records after them.

use rustc_hash::{FxHashMap, FxHashSet};
use tarbox_store::{
    Database, LayerRow, SnapshotRecord, StoreError, Tag, Tenant, TenantState, TenantStore, all,
};
use tarbox_types::{BlockId, BranchId, FamilyId, Layer, TenantId};

use crate::error::Result;

/// Blocks of one query.
const PAGE: usize = 1000;

/// Something that nothing refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Orphan {
    /// A sealed layer that is kept for nobody.
    Layer {
        /// Whose.
        tenant: TenantId,
        /// Which.
        layer: LayerRow,
    },
    /// A record of a layer that is gone.
    Record {
        /// Whose.
        tenant: TenantId,
        /// Which.
        record: SnapshotRecord,
    },
    /// A further name of a layer that is gone.
    Tag {
        /// Whose.
        tenant: TenantId,
        /// Which.
        tag: Tag,
    },
    /// Blocks that no content has, and that the collector does not know of.
    Blocks {
        /// A tenant of the family.
        tenant: TenantId,
        /// In which family.
        family: FamilyId,
        /// Which.
        blocks: Vec<BlockId>,
    },
}

impl Orphan {
    /// Whose it is; of blocks, one of those that may share them.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        match self {
            Self::Layer { tenant, .. }
            | Self::Record { tenant, .. }
            | Self::Tag { tenant, .. }
            | Self::Blocks { tenant, .. } => *tenant,
        }
    }

    /// In a few words, for a table.
    #[must_use]
    pub fn describe(&self) -> (&'static str, String) {
        match self {
            Self::Layer { tenant, layer } => ("layer", format!("`{}` of {tenant}", layer.name)),
            Self::Record { tenant, record } => ("record", format!("`{}` of {tenant}", record.request)),
            Self::Tag { tenant, tag } => ("tag", format!("`{}` of {tenant}", tag.name)),
            Self::Blocks { family, blocks, .. } => ("blocks", format!("{} in family {family}", blocks.len())),
        }
    }
}

/// Looks through the whole database.
///
/// # Errors
/// Those of the database.
pub async fn orphans(database: &dyn Database) -> Result<Vec<Orphan>> {
    let mut found = Vec::new();
    let mut families: FxHashSet<FamilyId> = FxHashSet::default();
    for tenant in database.tenants().await? {
        // What is deleted goes as a whole.
        if tenant.state != TenantState::Live {
            continue;
        }
        let store = match database.open_tenant(tenant.id).await {
            Err(StoreError::NoTenant(_)) => continue,
            store => store?,
        };
        found.extend(of_tenant(database, &*store, &tenant).await?);
        if families.insert(tenant.family) {
            found.extend(blocks_of(&*store, &tenant).await?);
        }
    }
    Ok(found)
}

fn place(layer: &LayerRow) -> (BranchId, Layer) {
    (layer.branch, layer.layer)
}

async fn of_tenant(database: &dyn Database, store: &dyn TenantStore, tenant: &Tenant) -> Result<Vec<Orphan>> {
    let layers = store.own_layers().await?;
    let id = |record: &SnapshotRecord| record.id;
    let mut records = all(id, |after, limit| database.snapshots(Some(tenant.id), after, limit)).await?;
    let settled = records.clone();
    let others = [
        all(id, |after, limit| database.kept_layers(after, limit)).await?,
        all(id, |after, limit| database.dropped_snapshots(after, limit)).await?,
    ];
    records.extend(others.into_iter().flatten().filter(|record| record.tenant == tenant.id));
    let mut kept: FxHashSet<_> =
        records.iter().filter_map(|record| record.layer.as_ref()).map(place).collect();
    for record in records.iter().filter(|record| record.layer.is_none()) {
        kept.extend(store.sealed(&record.seal().request).await?.as_ref().map(place));
    }
    let tags = database.tags(tenant.id).await?;
    // Asked for last: what was made meanwhile is there.
    let there: FxHashMap<_, _> =
        store.own_layers().await?.into_iter().map(|layer| (place(&layer), layer)).collect();
    Ok(put_together(tenant.id, layers, &kept, settled, tags, &there))
}

/// Pure.
fn put_together(
    tenant: TenantId,
    layers: Vec<LayerRow>,
    kept: &FxHashSet<(BranchId, Layer)>,
    settled: Vec<SnapshotRecord>,
    tags: Vec<Tag>,
    there: &FxHashMap<(BranchId, Layer), LayerRow>,
) -> Vec<Orphan> {
    // What a restore put aside has no record.
    let of_nobody =
        |layer: &LayerRow| !kept.contains(&place(layer)) && !layer.name.starts_with("before-restore");
    let is_gone = |at: (BranchId, Layer)| !there.contains_key(&at);
    let layers = layers.into_iter().filter(of_nobody).map(|layer| Orphan::Layer { tenant, layer });
    let records = settled
        .into_iter()
        .filter(|record| record.layer.as_ref().is_some_and(|layer| is_gone(place(layer))))
        .map(|record| Orphan::Record { tenant, record });
    let tags = tags
        .into_iter()
        .filter(|tag| is_gone((tag.branch, tag.layer)))
        .map(|tag| Orphan::Tag { tenant, tag });
    layers.chain(records).chain(tags).collect()
}

async fn blocks_of(store: &dyn TenantStore, tenant: &Tenant) -> Result<Option<Orphan>> {
    let (mut blocks, mut after) = (Vec::new(), Some(0));
    while let Some(from) = after {
        let (stray, next) = store.stray_blocks(from, PAGE).await?;
        blocks.extend(stray);
        after = next;
    }
    let (tenant, family) = (tenant.id, tenant.family);
    Ok((!blocks.is_empty()).then_some(Orphan::Blocks { tenant, family, blocks }))
}

/// Takes it away; whether it could be: a layer where something begins stays.
///
/// # Errors
/// Those of the database.
pub async fn remove(database: &dyn Database, orphan: &Orphan) -> Result<bool> {
    match orphan {
        Orphan::Layer { tenant, layer } => {
            let store = database.open_tenant(*tenant).await?;
            match store.delete_layer(layer.branch, layer.layer).await {
                Ok(()) | Err(StoreError::NoLayer { .. }) => Ok(true),
                Err(StoreError::LayerInUse { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
        Orphan::Record { record, .. } => {
            database.forget_snapshot(record.id).await?;
            Ok(true)
        }
        Orphan::Tag { tenant, tag } => Ok(database.untag(*tenant, &tag.name).await?),
        Orphan::Blocks { tenant, blocks, .. } => {
            let store = database.open_tenant(*tenant).await?;
            for some in blocks.chunks(PAGE) {
                store.offer_blocks(some).await?;
            }
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use tarbox_store::Purpose;

    use super::*;

    fn layer(number: Layer, name: &str) -> LayerRow {
        LayerRow {
            tenant: TenantId(uuid::Uuid::nil()),
            branch: 1,
            layer: number,
            name: name.to_owned(),
            sealed_at: 0,
            used_bytes: 0,
            used_inodes: 1,
        }
    }

    #[test]
    fn what_nobody_keeps_and_what_speaks_of_nothing_is_found() {
        let tenant = TenantId(uuid::Uuid::nil());
        let layers = vec![layer(1, "kept"), layer(2, "lost"), layer(3, "before-restore-1.3")];
        let there = layers.iter().map(|layer| (place(layer), layer.clone())).collect();
        let of = |number| SnapshotRecord {
            layer: Some(layer(number, "x")),
            ..SnapshotRecord::new(tenant, "x", Purpose::Checkpoint)
        };
        let (kept, gone) = (of(1), of(9));
        let tag = |name: &str, layer| Tag { name: name.to_owned(), branch: 1, layer };
        let found = put_together(
            tenant,
            layers.clone(),
            &FxHashSet::from_iter([(1, 1)]),
            vec![kept, gone.clone()],
            vec![tag("good", 1), tag("of nothing", 9)],
            &there,
        );
        assert_eq!(
            found,
            [
                Orphan::Layer { tenant, layer: layer(2, "lost") },
                Orphan::Record { tenant, record: gone },
                Orphan::Tag { tenant, tag: tag("of nothing", 9) },
            ]
        );
    }
}
