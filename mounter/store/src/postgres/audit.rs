//! Audit events: read in the order of time, removed when they are old, or with their tenant.

use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use tarbox_types::TenantId;

use super::{
    TenantRows,
    pool::Pool,
    rows::{self, unreadable},
    statement::{Statement, count, int},
};
use crate::{error::Result, model::*};

/// Chunks that one statement removes.
const ROWS: i64 = 500;

impl TenantRows {
    pub(super) async fn audit_chunks(&self, range: &AuditRange, limit: usize) -> Result<Vec<AuditChunk>> {
        let found = self.pool.read("read the audit", || self.audit_statement(range, limit)).await?;
        found.iter().map(|row| chunk(row).map_err(unreadable)).collect()
    }

    fn audit_statement(&self, range: &AuditRange, limit: usize) -> Statement {
        let (behind, order) = if range.newest_first { ("<", "DESC") } else { (">", "ASC") };
        let first = if range.newest_first { (i64::MAX, i64::MAX, i32::MAX) } else { (-1, -1, -1) };
        let (until, seq, part) = range.after.map_or(first, |(until, seq, part)| {
            (int(until), int(seq), i32::try_from(part).unwrap_or(i32::MAX))
        });
        Statement::new(format!(
            "SELECT until, seq, part, since, events, data FROM tarbox.audit
             WHERE family = $1 AND tenant = $2 AND until >= $3 AND (until, seq, part) {behind} ($4, $5, $6)
             ORDER BY until {order}, seq {order}, part {order} LIMIT $7"
        ))
        .with(self.family)
        .with(self.id.0)
        .with(int(range.since))
        .with(until)
        .with(seq)
        .with(part)
        .with(limit as i64)
    }

    pub(super) async fn expire_audit_before(&self, before: u64) -> Result<u64> {
        remove(&self.pool, self.family, self.id, int(before)).await
    }
}

/// Removes some of a tenant's chunks that end before a time, the oldest first; how many.
async fn remove(pool: &Pool, family: i64, tenant: TenantId, before: i64) -> Result<u64> {
    let gone = pool
        .write("remove audit events", || {
            Statement::new(
                "DELETE FROM tarbox.audit a WHERE a.family = $1 AND a.ctid = ANY(ARRAY(SELECT a.ctid FROM tarbox.audit a
                 WHERE a.family = $1 AND a.tenant = $2 AND a.until < $3 ORDER BY a.until LIMIT $4)) RETURNING 1",
            )
            .with(family)
            .with(tenant.0)
            .with(before)
            .with(ROWS)
        })
        .await?;
    Ok(gone.len() as u64)
}

/// Removes some of what a deleted tenant has left; whether there was anything.
pub(super) async fn remove_some(pool: &Pool, family: i64, tenant: TenantId) -> Result<bool> {
    Ok(remove(pool, family, tenant, i64::MAX).await? > 0)
}

fn chunk(row: &PgRow) -> rows::Sql<AuditChunk> {
    let part: i32 = row.try_get("part")?;
    let events: i64 = row.try_get("events")?;
    Ok(AuditChunk {
        seq: count(row.try_get("seq")?),
        part: part.unsigned_abs(),
        since: count(row.try_get("since")?),
        until: count(row.try_get("until")?),
        events: u32::try_from(events).unwrap_or(u32::MAX),
        data: Bytes::from(row.try_get::<Vec<u8>, _>("data")?),
    })
}
