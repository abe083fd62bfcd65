//! Records beside the tenants.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};
use tarbox_types::{BranchId, Layer, TenantId};
use uuid::Uuid;

use super::{
    Postgres,
    leases::interval,
    rows::{self, Sql, TENANT, TENANT_AND_HOLDER, unreadable},
    statement::{Statement, int},
};
use crate::{
    api::Database,
    error::{Result, StoreError},
    model::*,
    records::{Lead, Purpose, Records, SnapshotRecord, Tag, VolumeRecord},
};

const VOLUME: &str = "SELECT id, request, description FROM tarbox.volume";
const SNAPSHOT: &str =
    "SELECT id, tenant, request, purpose, branch, layer, name, sealed_at, used_bytes, used_inodes
     FROM tarbox.snapshot";

fn volume(row: &PgRow) -> Sql<VolumeRecord> {
    Ok(VolumeRecord {
        id: TenantId(row.try_get("id")?),
        request: row.try_get("request")?,
        description: row.try_get("description")?,
    })
}

fn snapshot(row: &PgRow) -> Sql<SnapshotRecord> {
    let layer = match row.try_get::<Option<i64>, _>("layer")? {
        Some(_) => Some(rows::layer(row)?),
        None => None,
    };
    Ok(SnapshotRecord {
        id: row.try_get("id")?,
        tenant: TenantId(row.try_get("tenant")?),
        request: row.try_get("request")?,
        purpose: Purpose::of_number(row.try_get("purpose")?),
        layer,
    })
}

fn all<T>(found: &[PgRow], decode: impl Fn(&PgRow) -> Sql<T>) -> Result<Vec<T>> {
    found.iter().map(|row| decode(row).map_err(unreadable)).collect()
}

/// The first row, where there is one.
fn first<T>(found: &[PgRow], decode: impl Fn(&PgRow) -> Sql<T>) -> Result<Option<T>> {
    found.first().map(|row| decode(row).map_err(unreadable)).transpose()
}

/// A record that was there a moment ago.
fn still<T>(found: Option<T>) -> Result<T> {
    found.ok_or_else(|| StoreError::Refused("the record was taken away at the same moment: try again".into()))
}

impl Postgres {
    async fn change(&self, doing: &'static str, sql: &str, id: Uuid) -> Result<()> {
        self.pool.write(doing, || Statement::new(sql).with(id)).await?;
        Ok(())
    }
}

#[async_trait]
impl Records for Postgres {
    async fn note_volume(&self, new: &VolumeRecord) -> Result<VolumeRecord> {
        self.pool
            .write("note a volume", || {
                Statement::new(
                    "INSERT INTO tarbox.volume (id, request, description) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                )
                .with(new.id.0)
                .with(new.request.as_str())
                .with(new.description.as_str())
            })
            .await?;
        let found = self
            .pool
            .read("look for a volume", || {
                Statement::new(format!("{VOLUME} WHERE request = $1")).with(new.request.as_str())
            })
            .await?;
        still(first(&found, volume)?)
    }

    async fn volume(&self, id: TenantId) -> Result<Option<VolumeRecord>> {
        let found = self
            .pool
            .read("look for a volume", || Statement::new(format!("{VOLUME} WHERE id = $1")).with(id.0))
            .await?;
        first(&found, volume)
    }

    async fn volumes(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<VolumeRecord>> {
        let found = self
            .pool
            .read("list volumes", || {
                Statement::new(format!("{VOLUME} WHERE id > $1 ORDER BY id LIMIT $2"))
                    .with(after.map_or_else(Uuid::nil, |id| id.0))
                    .with(int(limit as u64))
            })
            .await?;
        all(&found, volume)
    }

    async fn describe_volume(&self, old: &VolumeRecord, description: &str) -> Result<bool> {
        let changed = self
            .pool
            .write("describe a volume", || {
                Statement::new(
                    "UPDATE tarbox.volume SET description = $3 WHERE id = $1 AND description = $2 RETURNING 1",
                )
                .with(old.id.0)
                .with(old.description.as_str())
                .with(description)
            })
            .await?;
        Ok(!changed.is_empty())
    }

    async fn forget_volume(&self, id: TenantId) -> Result<()> {
        self.change("forget a volume", "DELETE FROM tarbox.volume WHERE id = $1", id.0).await
    }

    async fn live_tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Vec<Tenant>> {
        let found = self
            .pool
            .read("list tenants", || {
                Statement::new(format!(
                    "SELECT {TENANT} FROM {TENANT_AND_HOLDER} WHERE NOT t.deleted AND t.id > $1 ORDER BY t.id LIMIT $2"
                ))
                .with(after.map_or_else(Uuid::nil, |id| id.0))
                .with(int(limit as u64))
            })
            .await?;
        all(&found, rows::tenant)
    }

    async fn deleted_tenants(&self) -> Result<Vec<TenantId>> {
        let found = self
            .pool
            .read("list tenants", || Statement::new("SELECT id FROM tarbox.tenant WHERE deleted ORDER BY id"))
            .await?;
        all(&found, |row| row.try_get(0).map(TenantId))
    }

    async fn note_snapshot(&self, new: &SnapshotRecord) -> Result<SnapshotRecord> {
        self.pool
            .write("note a snapshot", || {
                Statement::new(
                    "INSERT INTO tarbox.snapshot (id, tenant, request, purpose) VALUES ($1, $2, $3, $4)
                     ON CONFLICT DO NOTHING",
                )
                .with(new.id)
                .with(new.tenant.0)
                .with(new.request.as_str())
                .with(new.purpose.number())
            })
            .await?;
        let found = self
            .pool
            .read("look for a snapshot", || {
                let sql = format!(
                    "{SNAPSHOT} WHERE id = $1
                       OR (request = $2 AND purpose = $3 AND ($3 = 0 OR ($3 = 3 AND tenant = $4)))"
                );
                let statement = Statement::new(sql).with(new.id).with(new.request.as_str());
                statement.with(new.purpose.number()).with(new.tenant.0)
            })
            .await?;
        still(first(&found, snapshot)?)
    }

    async fn settle_snapshot(&self, id: Uuid, layer: &LayerRow) -> Result<()> {
        self.pool
            .write("note a layer", || {
                Statement::new(
                    "UPDATE tarbox.snapshot SET branch = $2, layer = $3, name = $4, sealed_at = $5, used_bytes = $6,
                       used_inodes = $7 WHERE id = $1",
                )
                .with(id)
                .with(layer.branch)
                .with(layer.layer)
                .with(layer.name.as_str())
                .with(layer.sealed_at)
                .with(int(layer.used_bytes))
                .with(int(layer.used_inodes))
            })
            .await?;
        Ok(())
    }

    async fn snapshot(&self, id: Uuid) -> Result<Option<SnapshotRecord>> {
        let found = self
            .pool
            .read("look for a snapshot", || Statement::new(format!("{SNAPSHOT} WHERE id = $1")).with(id))
            .await?;
        first(&found, snapshot)
    }

    async fn snapshots(
        &self,
        of: Option<TenantId>,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        let found = self
            .pool
            .read("list snapshots", || {
                let sql = format!(
                    "{SNAPSHOT} n WHERE (purpose = 0 OR (purpose = 3
                       AND EXISTS (SELECT FROM tarbox.tenant t WHERE t.id = n.tenant AND NOT t.deleted)))
                     AND layer IS NOT NULL AND id > $1 AND ($2::uuid IS NULL OR tenant = $2) ORDER BY id LIMIT $3"
                );
                Statement::new(sql)
                    .with(after.unwrap_or_default())
                    .with(of.map(|id| id.0))
                    .with(int(limit as u64))
            })
            .await?;
        all(&found, snapshot)
    }

    async fn drop_snapshot(&self, id: Uuid) -> Result<()> {
        self.change("drop a snapshot", "UPDATE tarbox.snapshot SET purpose = 2 WHERE id = $1", id).await
    }

    async fn dropped_snapshots(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<SnapshotRecord>> {
        let found = self
            .pool
            .read("list snapshots", || {
                Statement::new(format!("{SNAPSHOT} WHERE purpose = 2 AND id > $1 ORDER BY id LIMIT $2"))
                    .with(after.unwrap_or_default())
                    .with(int(limit as u64))
            })
            .await?;
        all(&found, snapshot)
    }

    async fn kept_layers(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<SnapshotRecord>> {
        let found = self
            .pool
            .read("list layers to be kept", || {
                Statement::new(format!(
                    "{SNAPSHOT} WHERE (purpose = 1 OR (purpose IN (0, 3) AND layer IS NULL)) AND id > $1 ORDER BY id LIMIT $2"
                ))
                .with(after.unwrap_or_default())
                .with(int(limit as u64))
            })
            .await?;
        all(&found, snapshot)
    }

    async fn tag(&self, tenant: TenantId, name: &str, branch: BranchId, layer: Layer) -> Result<()> {
        self.pool
            .write("tag a checkpoint", || {
                Statement::new(
                    "INSERT INTO tarbox.tag (tenant, name, branch, layer) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (tenant, name) DO UPDATE SET branch = $3, layer = $4",
                )
                .with(tenant.0)
                .with(name)
                .with(branch)
                .with(layer)
            })
            .await?;
        Ok(())
    }

    async fn untag(&self, tenant: TenantId, name: &str) -> Result<bool> {
        let gone = self
            .pool
            .write("take a tag away", || {
                Statement::new("DELETE FROM tarbox.tag WHERE tenant = $1 AND name = $2 RETURNING 1")
                    .with(tenant.0)
                    .with(name)
            })
            .await?;
        Ok(!gone.is_empty())
    }

    async fn tags(&self, tenant: TenantId) -> Result<Vec<Tag>> {
        let found = self
            .pool
            .read("list tags", || {
                Statement::new("SELECT name, branch, layer FROM tarbox.tag WHERE tenant = $1 ORDER BY name")
                    .with(tenant.0)
            })
            .await?;
        all(&found, |row| Ok(Tag { name: row.try_get(0)?, branch: row.try_get(1)?, layer: row.try_get(2)? }))
    }

    async fn lead(&self, who: Uuid, term: Duration) -> Result<Option<Lead>> {
        let found = self
            .pool
            .write("take the lead", || {
                Statement::new(
                    "INSERT INTO tarbox.leader AS l (holder, epoch, until) VALUES ($1, 1, clock_timestamp() + $2)
                     ON CONFLICT (one) DO UPDATE SET holder = $1, until = clock_timestamp() + $2,
                       epoch = CASE WHEN l.holder = $1 AND l.until > clock_timestamp() THEN l.epoch ELSE l.epoch + 1 END
                     WHERE l.holder = $1 OR l.until <= clock_timestamp() RETURNING epoch",
                )
                .with(who)
                .with(interval(term))
            })
            .await?;
        first(&found, |row| Ok(Lead { who, epoch: row.try_get(0)? }))
    }

    async fn step_down(&self, who: Uuid) -> Result<()> {
        self.pool
            .write("give the lead back", || {
                Statement::new("UPDATE tarbox.leader SET until = clock_timestamp() WHERE one AND holder = $1")
                    .with(who)
            })
            .await?;
        Ok(())
    }

    fn led_by(&self, lead: &Lead) -> Arc<dyn Database> {
        Arc::new(Postgres { pool: self.pool.led_by(*lead), lease: self.lease })
    }

    async fn forget_snapshot(&self, id: Uuid) -> Result<()> {
        self.change("forget a snapshot", "DELETE FROM tarbox.snapshot WHERE id = $1", id).await
    }
}
