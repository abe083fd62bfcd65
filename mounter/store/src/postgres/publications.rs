//! Publications and nodes.

use async_trait::async_trait;
use sqlx::{Row, postgres::PgRow};
use tarbox_types::{AccessMode, TenantId};

use super::{
    Postgres,
    failure::Failure,
    pool::{Transaction, transact},
    rows::{Sql, unreadable},
    statement::Statement,
};
use crate::{
    error::{Result, StoreError},
    publications::{FORGOTTEN_AFTER_DAYS, Publication, Publications},
};

type Attempt<T> = std::result::Result<T, Failure>;

fn publication(row: &PgRow) -> Sql<Publication> {
    let mode: i16 = row.try_get("mode")?;
    Ok(Publication {
        tenant: TenantId(row.try_get("tenant")?),
        node: row.try_get("node")?,
        mode: AccessMode::of_number(mode.into())
            .ok_or_else(|| sqlx::Error::Decode(format!("{mode} is no access mode").into()))?,
        read_only: row.try_get("read_only")?,
    })
}

fn between(from: TenantId, upto: TenantId) -> Statement {
    Statement::new(
        "SELECT tenant, node, mode, read_only FROM tarbox.publication WHERE tenant BETWEEN $1 AND $2
         ORDER BY tenant, node",
    )
    .with(from.0)
    .with(upto.0)
}

/// Locks the tenant's row, so that two nodes cannot be noted at the same moment.
async fn publish_in(transaction: &mut Transaction, new: &Publication) -> Attempt<()> {
    let id = new.tenant;
    let locked =
        Statement::new("SELECT deleted FROM tarbox.tenant WHERE id = $1 FOR NO KEY UPDATE").with(id.0);
    match transaction.row(locked).await?.map(|row| row.try_get(0)).transpose()? {
        None => return Err(StoreError::NoTenant(id.to_string()).into()),
        Some(true) => return Err(StoreError::Deleted(id).into()),
        Some(false) => {}
    }
    let there = transaction.rows(between(id, id)).await?;
    let there = there.iter().map(publication).collect::<Sql<Vec<_>>>()?;
    if new.is_new_among(&there)? {
        let insert = Statement::new(
            "INSERT INTO tarbox.publication (tenant, node, mode, read_only) VALUES ($1, $2, $3, $4)",
        );
        let insert = insert.with(id.0).with(new.node.as_str()).with(new.mode.number()).with(new.read_only);
        transaction.rows(insert).await?;
    }
    Ok(())
}

impl Postgres {
    async fn try_publish(&self, new: &Publication) -> Attempt<()> {
        let mut transaction = self.pool.begin().await?;
        match publish_in(&mut transaction, new).await {
            Ok(()) => transaction.commit().await,
            Err(failure) => {
                if !failure.is_broken() {
                    transaction.roll_back().await;
                }
                Err(failure)
            }
        }
    }
}

#[async_trait]
impl Publications for Postgres {
    async fn publish(&self, new: &Publication) -> Result<()> {
        transact!(self.pool, "publish a volume", self.try_publish(new))
    }

    async fn unpublish(&self, tenant: TenantId, node: Option<&str>) -> Result<()> {
        self.pool
            .write("take a publication back", || {
                Statement::new(
                    "DELETE FROM tarbox.publication WHERE tenant = $1 AND ($2::text IS NULL OR node = $2)",
                )
                .with(tenant.0)
                .with(node)
            })
            .await?;
        Ok(())
    }

    async fn publications(&self, from: TenantId, upto: TenantId) -> Result<Vec<Publication>> {
        let found = self.pool.read("list publications", || between(from, upto)).await?;
        found.iter().map(|row| publication(row).map_err(unreadable)).collect()
    }

    async fn note_node(&self, node: &str) -> Result<()> {
        self.pool
            .write("note a node", || {
                Statement::new(
                    "WITH gone AS (DELETE FROM tarbox.node
                       WHERE seen_at < clock_timestamp() - make_interval(days => $2) AND node <> $1)
                     INSERT INTO tarbox.node (node, seen_at) VALUES ($1, clock_timestamp())
                     ON CONFLICT (node) DO UPDATE SET seen_at = clock_timestamp()",
                )
                .with(node)
                .with(FORGOTTEN_AFTER_DAYS)
            })
            .await?;
        Ok(())
    }

    async fn may_be_node(&self, node: &str) -> Result<bool> {
        let found = self
            .pool
            .read("look for a node", || {
                Statement::new(
                    "SELECT EXISTS (SELECT FROM tarbox.node WHERE node = $1) OR NOT EXISTS (SELECT FROM tarbox.node)",
                )
                .with(node)
            })
            .await?;
        found.first().map_or(Ok(true), |row| row.try_get(0).map_err(unreadable))
    }
}
