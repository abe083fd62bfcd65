//! Audit events: written with a commit, read in the order of time, removed when they are old, or with their tenant.

use bytes::Bytes;
use rusqlite::{Connection, params};
use tarbox_types::TenantId;

use super::{
    fault::Outcome,
    rows::{int, number},
};
use crate::model::*;

/// Chunks that one transaction removes.
const ROWS: i64 = 500;

pub(super) fn put(connection: &Connection, tenant: TenantId, chunks: &[AuditChunk]) -> Outcome<()> {
    if chunks.is_empty() {
        return Ok(());
    }
    let mut put = connection.prepare_cached(
        "INSERT INTO audit(tenant, until, seq, part, since, events, data) VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for chunk in chunks {
        let (until, seq, since) = (int(chunk.until), int(chunk.seq), int(chunk.since));
        let (part, events, data) = (chunk.part, chunk.events, &chunk.data[..]);
        put.execute(params![tenant.0.as_bytes(), until, seq, part, since, events, data])?;
    }
    Ok(())
}

pub(super) fn read(
    connection: &Connection,
    tenant: TenantId,
    range: &AuditRange,
    limit: usize,
) -> Outcome<Vec<AuditChunk>> {
    let (behind, order) = if range.newest_first { ("<", "DESC") } else { (">", "ASC") };
    let first = if range.newest_first { (i64::MAX, i64::MAX, i64::MAX) } else { (-1, -1, -1) };
    let (until, seq, part) =
        range.after.map_or(first, |(until, seq, part)| (int(until), int(seq), i64::from(part)));
    let mut found = connection.prepare_cached(&format!(
        "SELECT until, seq, part, since, events, data FROM audit
         WHERE tenant = ?1 AND until >= ?2 AND (until, seq, part) {behind} (?3, ?4, ?5)
         ORDER BY until {order}, seq {order}, part {order} LIMIT ?6"
    ))?;
    let chunks = found.query_map(
        params![tenant.0.as_bytes(), int(range.since), until, seq, part, int(limit as u64)],
        |row| {
            Ok(AuditChunk {
                until: number(row, 0)?,
                seq: number(row, 1)?,
                part: row.get(2)?,
                since: number(row, 3)?,
                events: row.get(4)?,
                data: Bytes::from(row.get::<_, Vec<u8>>(5)?),
            })
        },
    )?;
    Ok(chunks.collect::<rusqlite::Result<_>>()?)
}

/// Removes some of a tenant's chunks that end before a time, the oldest first; how many.
pub(super) fn remove(connection: &Connection, tenant: TenantId, before: u64) -> Outcome<u64> {
    let gone = connection
        .prepare_cached(
            "DELETE FROM audit WHERE id IN
             (SELECT id FROM audit WHERE tenant = ?1 AND until < ?2 ORDER BY until LIMIT ?3)",
        )?
        .execute(params![tenant.0.as_bytes(), int(before), ROWS])?;
    Ok(gone as u64)
}
