//! Records beside the tenants, in the control database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tarbox_types::{BranchId, Layer, TenantId};
use uuid::Uuid;

use super::{
    control::{self, Control, Stage},
    database::SqliteDatabase,
    fault::Outcome,
    rows::{self, int, number},
};
use crate::{
    api::Database,
    error::Result,
    model::*,
    records::{Lead, Purpose, Records, SnapshotRecord, Tag, VolumeRecord},
};

const SNAPSHOT: &str =
    "SELECT id, tenant, request, purpose, branch, layer, name, sealed_at, used_bytes, used_inodes
     FROM snapshot";

/// Beyond this id; the nil id is nobody's.
fn beyond(after: Option<Uuid>) -> [u8; 16] {
    after.unwrap_or_default().into_bytes()
}

fn limited(limit: usize) -> i64 {
    int(limit as u64)
}

fn volume(row: &Row<'_>) -> rusqlite::Result<VolumeRecord> {
    Ok(VolumeRecord { id: TenantId(rows::uuid(row, 0)?), request: row.get(1)?, description: row.get(2)? })
}

fn snapshot(row: &Row<'_>) -> rusqlite::Result<SnapshotRecord> {
    let layer = match row.get::<_, Option<i64>>(5)? {
        Some(layer) => Some(LayerRow {
            branch: row.get(4)?,
            layer,
            tenant: TenantId(rows::uuid(row, 1)?),
            name: row.get(6)?,
            sealed_at: row.get(7)?,
            used_bytes: number(row, 8)?,
            used_inodes: number(row, 9)?,
        }),
        None => None,
    };
    Ok(SnapshotRecord {
        id: rows::uuid(row, 0)?,
        tenant: TenantId(rows::uuid(row, 1)?),
        request: row.get(2)?,
        purpose: Purpose::of_number(row.get(3)?),
        layer,
    })
}

fn all<T>(
    connection: &Connection,
    sql: &str,
    parameters: &[&dyn rusqlite::ToSql],
    decode: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Outcome<Vec<T>> {
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_map(parameters, decode)?.collect::<rusqlite::Result<_>>()?)
}

impl Control {
    /// Layers that a tenant's holder is to seal.
    pub(super) fn seals(&self, id: TenantId) -> Result<Vec<Seal>> {
        self.with("looking for snapshots to be made", |connection| {
            let sql = format!("{SNAPSHOT} WHERE tenant = ?1 AND layer IS NULL AND purpose <> 2 ORDER BY id");
            let found = all(connection, &sql, params![id.0.as_bytes()], snapshot)?;
            Ok(found.iter().map(SnapshotRecord::seal).collect())
        })
    }

    /// Whether layers of a tenant are kept for somebody.
    pub(super) fn has_snapshots(&self, id: TenantId) -> Result<bool> {
        self.with("looking for snapshots", |connection| {
            let sql = "SELECT 1 FROM snapshot WHERE tenant = ?1 AND purpose < 2";
            Ok(connection.prepare_cached(sql)?.exists([id.0.as_bytes()])?)
        })
    }
}

#[async_trait]
impl Records for SqliteDatabase {
    async fn note_volume(&self, new: &VolumeRecord) -> Result<VolumeRecord> {
        self.inner.control.write("noting a volume", |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO volume(id, request, description) VALUES(?1, ?2, ?3) ON CONFLICT DO NOTHING",
                )?
                .execute(params![new.id.0.as_bytes(), new.request, new.description])?;
            Ok(connection
                .prepare_cached("SELECT id, request, description FROM volume WHERE request = ?1")?
                .query_row([&new.request], volume)?)
        })
    }

    async fn volume(&self, id: TenantId) -> Result<Option<VolumeRecord>> {
        self.inner.control.with("looking for a volume", |connection| {
            Ok(connection
                .prepare_cached("SELECT id, request, description FROM volume WHERE id = ?1")?
                .query_row([id.0.as_bytes()], volume)
                .optional()?)
        })
    }

    async fn volumes(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<VolumeRecord>> {
        self.inner.control.with("listing volumes", |connection| {
            let sql = "SELECT id, request, description FROM volume WHERE id > ?1 ORDER BY id LIMIT ?2";
            all(connection, sql, params![beyond(after.map(|id| id.0)), limited(limit)], volume)
        })
    }

    async fn describe_volume(&self, old: &VolumeRecord, description: &str) -> Result<bool> {
        self.inner.control.write("describing a volume", |connection| {
            let changed = connection
                .prepare_cached("UPDATE volume SET description = ?3 WHERE id = ?1 AND description = ?2")?
                .execute(params![old.id.0.as_bytes(), old.description, description])?;
            Ok(changed > 0)
        })
    }

    async fn forget_volume(&self, id: TenantId) -> Result<()> {
        self.inner.control.write("forgetting a volume", |connection| {
            connection.prepare_cached("DELETE FROM volume WHERE id = ?1")?.execute([id.0.as_bytes()])?;
            Ok(())
        })
    }

    async fn live_tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tenant>> {
        let found = self.inner.control.with("listing tenants", |connection| {
            let sql = "SELECT id, family, state FROM tenant WHERE state = 0 AND id > ?1 ORDER BY id LIMIT ?2";
            all(connection, sql, params![beyond(after.map(|id| id.0)), limited(limit)], control::entry)
        })?;
        let mut tenants = Vec::with_capacity(found.len());
        for entry in found {
            tenants.extend(self.inner.present(entry)?);
        }
        Ok(tenants)
    }

    async fn deleted_tenants(&self) -> Result<Vec<TenantId>> {
        self.inner.control.with("listing tenants", |connection| {
            let sql = "SELECT id, family, state FROM tenant WHERE state IN (?1, ?2) ORDER BY id";
            let stages = params![Stage::Deleted as i64, Stage::Removing as i64];
            Ok(all(connection, sql, stages, control::entry)?.into_iter().map(|entry| entry.id).collect())
        })
    }

    async fn note_snapshot(&self, new: &SnapshotRecord) -> Result<SnapshotRecord> {
        self.inner.control.write("noting a snapshot", |connection| {
            let (id, purpose) = (new.id.as_bytes(), new.purpose.number());
            connection
                .prepare_cached(
                    "INSERT INTO snapshot(id, tenant, request, purpose) VALUES(?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                )?
                .execute(params![id, new.tenant.0.as_bytes(), new.request, purpose])?;
            let sql = format!(
                "{SNAPSHOT} WHERE id = ?1 OR (request = ?2 AND purpose = ?3 AND (?3 = 0 OR (?3 = 3 AND tenant = ?4)))"
            );
            Ok(connection
                .prepare_cached(&sql)?
                .query_row(params![id, new.request, purpose, new.tenant.0.as_bytes()], snapshot)?)
        })
    }

    async fn settle_snapshot(&self, id: Uuid, layer: &LayerRow) -> Result<()> {
        self.inner.control.write("noting a layer", |connection| {
            connection
                .prepare_cached(
                    "UPDATE snapshot SET branch = ?2, layer = ?3, name = ?4, sealed_at = ?5, used_bytes = ?6,
                     used_inodes = ?7 WHERE id = ?1",
                )?
                .execute(params![
                    id.as_bytes(),
                    layer.branch,
                    layer.layer,
                    layer.name,
                    layer.sealed_at,
                    int(layer.used_bytes),
                    int(layer.used_inodes)
                ])?;
            Ok(())
        })
    }

    async fn snapshot(&self, id: Uuid) -> Result<Option<SnapshotRecord>> {
        self.inner.control.with("looking for a snapshot", |connection| {
            let sql = format!("{SNAPSHOT} WHERE id = ?1");
            Ok(connection.prepare_cached(&sql)?.query_row([id.as_bytes()], snapshot).optional()?)
        })
    }

    async fn snapshots(
        &self,
        of: Option<TenantId>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        self.inner.control.with("listing snapshots", |connection| {
            let sql = format!(
                "{SNAPSHOT} WHERE (purpose = 0 OR (purpose = 3
                   AND EXISTS(SELECT 1 FROM tenant t WHERE t.id = snapshot.tenant AND t.state = 0)))
                 AND layer IS NOT NULL AND id > ?1 AND (?2 IS NULL OR tenant = ?2) ORDER BY id LIMIT ?3"
            );
            let of = of.map(|id| id.0.into_bytes());
            all(connection, &sql, params![beyond(after), of, limited(limit)], snapshot)
        })
    }

    async fn drop_snapshot(&self, id: Uuid) -> Result<()> {
        self.inner.control.write("dropping a snapshot", |connection| {
            connection
                .prepare_cached("UPDATE snapshot SET purpose = 2 WHERE id = ?1")?
                .execute([id.as_bytes()])?;
            Ok(())
        })
    }

    async fn dropped_snapshots(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<SnapshotRecord>> {
        self.inner.control.with("listing snapshots", |connection| {
            let sql = format!("{SNAPSHOT} WHERE purpose = 2 AND id > ?1 ORDER BY id LIMIT ?2");
            all(connection, &sql, params![beyond(after), limited(limit)], snapshot)
        })
    }

    async fn kept_layers(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<SnapshotRecord>> {
        self.inner.control.with("listing layers to be kept", |connection| {
            let sql = format!(
                "{SNAPSHOT} WHERE (purpose = 1 OR (purpose IN (0, 3) AND layer IS NULL)) AND id > ?1 ORDER BY id LIMIT ?2"
            );
            all(connection, &sql, params![beyond(after), limited(limit)], snapshot)
        })
    }

    async fn tag(&self, tenant: TenantId, name: &str, branch: BranchId, layer: Layer) -> Result<()> {
        self.inner.control.write("tagging a checkpoint", |connection| {
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO tag(tenant, name, branch, layer) VALUES(?1, ?2, ?3, ?4)",
                )?
                .execute(params![tenant.0.as_bytes(), name, branch, layer])?;
            Ok(())
        })
    }

    async fn untag(&self, tenant: TenantId, name: &str) -> Result<bool> {
        self.inner.control.write("taking a tag away", |connection| {
            let gone = connection
                .prepare_cached("DELETE FROM tag WHERE tenant = ?1 AND name = ?2")?
                .execute(params![tenant.0.as_bytes(), name])?;
            Ok(gone > 0)
        })
    }

    async fn tags(&self, tenant: TenantId) -> Result<Vec<Tag>> {
        self.inner.control.with("listing tags", |connection| {
            let sql = "SELECT name, branch, layer FROM tag WHERE tenant = ?1 ORDER BY name";
            let decode =
                |row: &Row<'_>| Ok(Tag { name: row.get(0)?, branch: row.get(1)?, layer: row.get(2)? });
            all(connection, sql, params![tenant.0.as_bytes()], decode)
        })
    }

    /// A locked file: who is only paused keeps it, so that nobody has to be refused later.
    async fn lead(&self, who: Uuid, _term: Duration) -> Result<Option<Lead>> {
        let is_ours = self.inner.take_lead()?;
        Ok(is_ours.then_some(Lead { who, epoch: 1 }))
    }

    async fn step_down(&self, _who: Uuid) -> Result<()> {
        self.inner.give_lead_back();
        Ok(())
    }

    fn led_by(&self, _lead: &Lead) -> Arc<dyn Database> {
        Arc::new(Self { inner: self.inner.clone() })
    }

    async fn forget_snapshot(&self, id: Uuid) -> Result<()> {
        self.inner.control.write("forgetting a snapshot", |connection| {
            connection.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?.execute([id.as_bytes()])?;
            Ok(())
        })
    }
}
