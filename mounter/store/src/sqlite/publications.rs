//! Publications and nodes, in the control database.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tarbox_types::{AccessMode, TenantId};

use super::{control::Stage, database::SqliteDatabase, fault::Outcome, rows};
use crate::{
    error::{Result, StoreError},
    publications::{FORGOTTEN_AFTER_DAYS, Publication, Publications},
};

fn publication(row: &Row<'_>) -> rusqlite::Result<Publication> {
    let mode: i32 = row.get(2)?;
    Ok(Publication {
        tenant: TenantId(rows::uuid(row, 0)?),
        node: row.get(1)?,
        mode: AccessMode::of_number(mode).ok_or(rusqlite::Error::IntegralValueOutOfRange(2, mode.into()))?,
        read_only: row.get(3)?,
    })
}

fn between(connection: &Connection, from: TenantId, upto: TenantId) -> Outcome<Vec<Publication>> {
    let sql = "SELECT tenant, node, mode, read_only FROM publication WHERE tenant BETWEEN ?1 AND ?2
               ORDER BY tenant, node";
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_map(params![from.0.as_bytes(), upto.0.as_bytes()], publication)?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

fn refuse_gone(connection: &Connection, id: TenantId) -> Outcome<()> {
    let stage: Option<i64> = connection
        .prepare_cached("SELECT state FROM tenant WHERE id = ?1")?
        .query_row([id.0.as_bytes()], |row| row.get(0))
        .optional()?;
    match stage {
        Some(stage) if stage == Stage::Live as i64 => Ok(()),
        Some(stage) if stage == Stage::Deleted as i64 => Err(StoreError::Deleted(id).into()),
        Some(_) | None => Err(StoreError::NoTenant(id.to_string()).into()),
    }
}

#[async_trait]
impl Publications for SqliteDatabase {
    async fn publish(&self, new: &Publication) -> Result<()> {
        self.inner.control.write("publishing a volume", |connection| {
            refuse_gone(connection, new.tenant)?;
            if new.is_new_among(&between(connection, new.tenant, new.tenant)?)? {
                connection
                    .prepare_cached(
                        "INSERT INTO publication(tenant, node, mode, read_only) VALUES(?1, ?2, ?3, ?4)",
                    )?
                    .execute(params![new.tenant.0.as_bytes(), new.node, new.mode.number(), new.read_only])?;
            }
            Ok(())
        })
    }

    async fn unpublish(&self, tenant: TenantId, node: Option<&str>) -> Result<()> {
        self.inner.control.write("taking a publication back", |connection| {
            connection
                .prepare_cached("DELETE FROM publication WHERE tenant = ?1 AND (?2 IS NULL OR node = ?2)")?
                .execute(params![tenant.0.as_bytes(), node])?;
            Ok(())
        })
    }

    async fn publications(&self, from: TenantId, upto: TenantId) -> Result<Vec<Publication>> {
        self.inner.control.with("listing publications", |connection| between(connection, from, upto))
    }

    async fn note_node(&self, node: &str) -> Result<()> {
        self.inner.control.write("noting a node", |connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO node(node, seen_at) VALUES(?1, unixepoch())")?
                .execute([node])?;
            connection
                .prepare_cached("DELETE FROM node WHERE seen_at < unixepoch() - ?1 * 86400")?
                .execute([FORGOTTEN_AFTER_DAYS])?;
            Ok(())
        })
    }

    async fn may_be_node(&self, node: &str) -> Result<bool> {
        self.inner.control.with("looking for a node", |connection| {
            let sql = "SELECT EXISTS(SELECT 1 FROM node WHERE node = ?1) OR NOT EXISTS(SELECT 1 FROM node)";
            Ok(connection.prepare_cached(sql)?.query_row([node], |row| row.get(0))?)
        })
    }
}
