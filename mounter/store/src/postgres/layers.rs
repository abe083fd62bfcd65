//! Sealed layers: listed, made for a tenant that nobody holds, deleted with what only they showed.
//!
//! The layers of a branch are its kept views (forks begin at one). Whoever removes one, or decides by them whether a
//! version is still seen, holds the lock of the branch's row; commits do not need it.

use sqlx::Row;
use tarbox_types::{BranchId, Layer, SessionId};
use uuid::Uuid;

use super::{
    TenantRows, collect,
    failure::Failure,
    leases::LOCKED,
    pool::{Pool, Transaction, transact},
    rows::{self, unreadable},
    statement::Statement,
    tenants::no_layer,
};
use crate::{
    error::{Result, StoreError},
    model::*,
};

const LAYER: &str = "y.branch, y.layer, y.tenant, y.name, y.sealed_at, y.used_bytes, y.used_inodes";

impl TenantRows {
    pub(super) async fn list_layers(&self) -> Result<Vec<LayerRow>> {
        // Through where the branches began, whatever has been flattened since.
        let found = self
            .pool
            .read("list checkpoints", || {
                Statement::new(format!(
                    "WITH RECURSIVE chain AS (
                       SELECT 1 AS ord, b.branch, {}::bigint AS layer, COALESCE(b.origin, b.parent) AS parent,
                         COALESCE(b.origin_layer, b.parent_layer) AS parent_layer
                       FROM tarbox.tenant t JOIN tarbox.branch b ON b.family = t.family AND b.branch = t.head_branch WHERE t.id = $2
                       UNION ALL
                       SELECT c.ord + 1, b.branch, c.parent_layer, COALESCE(b.origin, b.parent),
                         COALESCE(b.origin_layer, b.parent_layer)
                       FROM chain c JOIN tarbox.branch b ON b.family = $1 AND b.branch = c.parent)
                     SELECT {LAYER} FROM chain a
                     JOIN tarbox.layer y ON y.family = $1 AND y.branch = a.branch AND y.layer <= a.layer
                     ORDER BY a.ord, y.layer DESC",
                    i64::MAX
                ))
                .with(self.family)
                .with(self.id.0)
            })
            .await?;
        found.iter().map(|row| rows::layer(row).map_err(unreadable)).collect()
    }

    pub(super) async fn origin_of(&self, branch: BranchId) -> Result<Option<(BranchId, Layer)>> {
        let found = self
            .pool
            .read("look at a branch", || {
                Statement::new(
                    "SELECT COALESCE(origin, parent), COALESCE(origin_layer, parent_layer) FROM tarbox.branch
                     WHERE family = $1 AND branch = $2 AND COALESCE(origin, parent) IS NOT NULL",
                )
                .with(self.family)
                .with(branch)
            })
            .await?;
        let read = |row: &sqlx::postgres::PgRow| Ok((row.try_get(0)?, row.try_get(1)?));
        found.first().map(|row| read(row).map_err(unreadable)).transpose()
    }

    pub(super) async fn layer_of_request(&self, request: &str) -> Result<Option<LayerRow>> {
        let found = self.pool.read("look for a layer", || self.same("request", request)).await?;
        found.first().map(|row| rows::layer(row).map_err(unreadable)).transpose()
    }

    pub(super) async fn layer_of_name(&self, name: &str) -> Result<Option<LayerRow>> {
        let found = self.pool.read("look for a checkpoint", || self.same("name", name)).await?;
        found.first().map(|row| rows::layer(row).map_err(unreadable)).transpose()
    }

    pub(super) async fn layers_of_tenant(&self) -> Result<Vec<LayerRow>> {
        let found = self
            .pool
            .read("list checkpoints", || {
                Statement::new(format!(
                    "SELECT {LAYER} FROM tarbox.layer y WHERE y.tenant = $1
                     ORDER BY y.sealed_at DESC, y.branch DESC, y.layer DESC"
                ))
                .with(self.id.0)
            })
            .await?;
        found.iter().map(|row| rows::layer(row).map_err(unreadable)).collect()
    }

    /// The tenant's layer with this value in a column that is unique.
    fn same(&self, column: &str, value: &str) -> Statement {
        Statement::new(format!("SELECT {LAYER} FROM tarbox.layer y WHERE y.tenant = $1 AND y.{column} = $2"))
            .with(self.id.0)
            .with(value)
    }

    pub(super) async fn seal_unheld(&self, seal: &Seal) -> Result<LayerRow> {
        transact!(self.pool, "seal a layer", self.try_seal(seal))
    }

    async fn try_seal(&self, seal: &Seal) -> std::result::Result<LayerRow, Failure> {
        let mut transaction = self.pool.begin().await?;
        match self.seal_in(&mut transaction, seal).await {
            Ok(sealed) => transaction.commit().await.map(|()| sealed),
            Err(failure @ Failure::Store(_)) => {
                transaction.roll_back().await;
                Err(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn seal_in(
        &self,
        transaction: &mut Transaction,
        seal: &Seal,
    ) -> std::result::Result<LayerRow, Failure> {
        let tenant = transaction
            .row(
                Statement::new(format!(
                    "SELECT {LOCKED}, (SELECT s.node FROM tarbox.session s WHERE t.held AND s.session = t.session
                       AND s.beat_at + s.lease > clock_timestamp()) AS node,
                       (SELECT s.pid FROM tarbox.session s WHERE s.session = t.session) AS pid
                     FROM tarbox.tenant t WHERE t.id = $1 FOR UPDATE OF t"
                ))
                .with(self.id.0),
            )
            .await?
            .ok_or_else(|| StoreError::NoTenant(self.id.to_string()))?;
        if let Some(row) = transaction.row(self.same("request", &seal.request)).await? {
            return Ok(rows::layer(&row)?);
        }
        if tenant.try_get("deleted")? {
            return Err(StoreError::Deleted(self.id).into());
        }
        if let Some(node) = tenant.try_get::<Option<String>, _>("node")? {
            let session = SessionId(tenant.try_get("session")?);
            let pid = tenant.try_get::<Option<i64>, _>("pid")?.unwrap_or_default() as u32;
            return Err(StoreError::Held { tenant: self.id, holder: Holder { session, node, pid } }.into());
        }
        if transaction.row(self.same("name", &seal.name)).await?.is_some() {
            return Err(StoreError::Refused(format!("there is a checkpoint `{}` already", seal.name)).into());
        }
        // A holder that expired and wakes up must not write into what is sealed: the epoch is taken, too.
        transaction
            .rows(
                Statement::new(
                    "UPDATE tarbox.tenant SET cur_layer = cur_layer + 1, last_view = cur_layer, held = false,
                       epoch = CASE WHEN held THEN epoch + 1 ELSE epoch END,
                       token = CASE WHEN held THEN $2 ELSE token END WHERE id = $1",
                )
                .with(self.id.0)
                .with(Uuid::new_v4()),
            )
            .await?;
        let sealed = transaction
            .row(
                Statement::new(format!(
                    "INSERT INTO tarbox.layer AS y
                       (family, branch, layer, tenant, name, request, seq, next_ino, used_bytes, used_inodes)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING {LAYER}"
                ))
                .with(self.family)
                .with(tenant.try_get::<i64, _>("head_branch")?)
                .with(tenant.try_get::<i64, _>("cur_layer")?)
                .with(self.id.0)
                .with(seal.name.as_str())
                .with(seal.request.as_str())
                .with(tenant.try_get::<i64, _>("seq")?)
                .with(tenant.try_get::<i64, _>("next_ino")?)
                .with(tenant.try_get::<i64, _>("used_bytes")?)
                .with(tenant.try_get::<i64, _>("used_inodes")?),
            )
            .await?
            .ok_or(sqlx::Error::RowNotFound)?;
        Ok(rows::layer(&sealed)?)
    }

    pub(super) async fn remove_layer(&self, branch: BranchId, layer: Layer) -> Result<()> {
        remove(&self.pool, self.family, branch, layer).await?;
        // A login notes what is to be pruned: what relatives still need it does not see.
        if self.pool.is_of_login() {
            return Ok(());
        }
        while collect::prune(&self.pool, self.family).await?.is_some() {}
        Ok(())
    }
}

/// Takes a layer away and notes the history that is to be pruned.
pub(super) async fn remove(pool: &Pool, family: i64, branch: BranchId, layer: Layer) -> Result<()> {
    transact!(pool, "delete a checkpoint", try_remove(pool, family, branch, layer))
}

async fn try_remove(
    pool: &Pool,
    family: i64,
    branch: BranchId,
    layer: Layer,
) -> std::result::Result<(), Failure> {
    let mut transaction = pool.begin().await?;
    match remove_in(&mut transaction, family, branch, layer).await {
        Ok(()) => transaction.commit().await,
        Err(failure @ Failure::Store(_)) => {
            transaction.roll_back().await;
            Err(failure)
        }
        Err(failure) => Err(failure),
    }
}

/// Locks, in the order of all transactions: tenant, branch, layer.
async fn remove_in(
    transaction: &mut Transaction,
    family: i64,
    branch: BranchId,
    layer: Layer,
) -> std::result::Result<(), Failure> {
    let head = transaction
        .row(
            Statement::new(
                "SELECT t.id, t.cur_layer FROM tarbox.tenant t WHERE t.family = $1 AND t.head_branch = $2
                 AND (NOT t.deleted OR t.held) FOR UPDATE",
            )
            .with(family)
            .with(branch),
        )
        .await?;
    let key = |sql: &str| Statement::new(sql).with(family).with(branch).with(layer);
    transaction.rows(lock_branch(family, branch)).await?;
    transaction
        .row(key("SELECT 1 FROM tarbox.layer WHERE family = $1 AND branch = $2 AND layer = $3 FOR UPDATE"))
        .await?
        .ok_or_else(|| no_layer(branch, layer))?;
    let forks =
        key("SELECT 1 FROM tarbox.branch WHERE family = $1 AND parent = $2 AND parent_layer = $3 LIMIT 1");
    if transaction.row(forks).await?.is_some() {
        return Err(StoreError::LayerInUse { branch, layer }.into());
    }
    let gone = key("DELETE FROM tarbox.layer WHERE family = $1 AND branch = $2 AND layer = $3 RETURNING 1");
    match transaction.rows(gone).await {
        // A login sees layers of an ancestor, which are not its tenant's to delete.
        Ok(gone) if gone.is_empty() => return Err(no_layer(branch, layer).into()),
        // And it does not see who begins at one of its own: the server looks.
        Err(failure) if failure.would_break("layer_in_use") => {
            return Err(StoreError::LayerInUse { branch, layer }.into());
        }
        done => drop(done?),
    }
    // What a head writes from now on into its history is younger than this: a later checkpoint may need it.
    let open = match &head {
        Some(row) => row.try_get("cur_layer")?,
        None => i64::MAX,
    };
    transaction
        .rows(
            key("INSERT INTO tarbox.prune (family, branch, above, below, upto, current)
                 SELECT $1, $2, COALESCE(max(y.layer) FILTER (WHERE y.layer < $3), -1), $3,
                   COALESCE(min(y.layer) FILTER (WHERE y.layer > $3), $4),
                   $5 AND max(y.layer) FILTER (WHERE y.layer > $3) IS NULL
                 FROM tarbox.layer y WHERE y.family = $1 AND y.branch = $2")
            .with(open)
            .with(head.is_none()),
        )
        .await?;
    if let Some(row) = head {
        let id: Uuid = row.try_get("id")?;
        transaction
            .rows(
                Statement::new(
                    "UPDATE tarbox.tenant SET last_view = COALESCE((SELECT max(y.layer) FROM tarbox.layer y
                       WHERE y.family = $2 AND y.branch = $3), -1) WHERE id = $1",
                )
                .with(id)
                .with(family)
                .with(branch),
            )
            .await?;
    }
    Ok(())
}

/// Keeps the kept views of a branch as they are until the transaction ends.
pub(super) fn lock_branch(family: i64, branch: BranchId) -> Statement {
    Statement::new("SELECT 1 FROM tarbox.branch WHERE family = $1 AND branch = $2 FOR NO KEY UPDATE")
        .with(family)
        .with(branch)
}
