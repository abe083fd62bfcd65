//! One commit: one statement, whose first part is the fence.
//!
//! The fence is a compare-and-set on the tenant's row. All other parts take branch, layer and last kept view from what
//! it returns: where it finds no row, there is nothing for them to join with, and nothing is written.
//! What the batch lacks is left out of the text; the few shapes that occur stay prepared.
//! No part touches a row that another part touches: PostgreSQL does not say which of them would win.

mod extents;
mod names;

use sqlx::{Row, postgres::PgRow};
use tarbox_types::BlockId;

use super::{
    TenantRows,
    chain::probe,
    rows::{self, unreadable},
    statement::{Statement, column, count, int},
};
use crate::{
    error::{Result, StoreError},
    model::*,
};

impl TenantRows {
    pub(super) async fn commit_batch(&self, fence: &Fence, batch: &Batch) -> Result<Committed> {
        loop {
            let found = self.pool.write("commit", || statement(self.family, fence, batch)).await?;
            if let Some(row) = found.first() {
                return committed(row).map_err(unreadable);
            }
            match self.why_not(fence, batch).await? {
                // It waited for a batch of a flattening, which it does not see: once more.
                StoreError::BlocksGone(none) if none.is_empty() => {}
                error => return Err(error),
            }
        }
    }

    /// Why a fence found no row.
    async fn why_not(&self, fence: &Fence, batch: &Batch) -> Result<StoreError> {
        let found = self
            .pool
            .read("ask why a commit was refused", || {
                Statement::new("SELECT epoch, token, held, seq FROM tarbox.tenant WHERE id = $1")
                    .with(self.id.0)
            })
            .await?;
        let Some(row) = found.first() else { return Ok(StoreError::NoTenant(self.id.to_string())) };
        if let Some(fenced) = fenced(row, fence).map_err(unreadable)? {
            return Ok(fenced);
        }
        let seq = count(row.try_get("seq").map_err(unreadable)?);
        if seq != batch.from_seq {
            return Ok(StoreError::Position { expected: batch.from_seq, found: seq });
        }
        Ok(StoreError::BlocksGone(self.missing(&batch.reused).await?))
    }

    async fn missing(&self, blocks: &[BlockId]) -> Result<Vec<BlockId>> {
        let found = self
            .pool
            .read("look for collected blocks", || {
                let mut statement = Statement::new(
                    "SELECT k FROM unnest($2::bigint[]) AS k WHERE NOT EXISTS
                       (SELECT FROM tarbox.block b WHERE b.family = $1 AND b.block = k OFFSET 0)",
                )
                .with(self.family);
                statement.bind(column(blocks, |block| int(*block)));
                statement
            })
            .await?;
        found.iter().map(|row| row.try_get(0).map(count).map_err(unreadable)).collect()
    }
}

/// The fence is no longer ours: by a row with `epoch`, `token` and `held`.
pub(super) fn fenced(row: &PgRow, fence: &Fence) -> rows::Sql<Option<StoreError>> {
    let epoch = row.try_get("epoch")?;
    let token: uuid::Uuid = row.try_get("token")?;
    let held: bool = row.try_get("held")?;
    let ours = held && epoch == fence.epoch && token == fence.token;
    Ok((!ours).then_some(StoreError::Fenced { tenant: fence.tenant, epoch: fence.epoch, epoch_now: epoch }))
}

fn committed(row: &PgRow) -> rows::Sql<Committed> {
    Ok(Committed { layer: row.try_get("layer")?, sealed: row.try_get("sealed")?, limits: rows::limits(row)? })
}

/// A statement whose parts are added one after the other.
struct Parts {
    statement: Statement,
}

impl Parts {
    /// Adds a part `name` that deletes rows of a table whose places (`ctid`) a query `which` gives as `at`.
    fn delete(&mut self, name: &str, table: &str, which: &str) {
        self.part(
            name,
            &format!("DELETE FROM tarbox.{table} t USING ({which} OFFSET 0) w WHERE t.ctid = w.at"),
        );
    }

    /// Adds a part `name AS (sql)`.
    fn part(&mut self, name: &str, sql: &str) {
        self.statement.push(&format!(",\n{name} AS ({sql})"));
    }

    /// Binds a value; returns how the text refers to it.
    fn bind<'q, T: sqlx::Encode<'q, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>>(
        &mut self,
        value: T,
    ) -> String {
        format!("${}", self.statement.bind(value))
    }
}

/// The one statement of a commit; no row = the fence found none.
pub(super) fn statement(family: i64, fence: &Fence, batch: &Batch) -> Statement {
    let mut parts = Parts { statement: Statement::default().with(family) };
    fence_part(&mut parts, fence, batch);
    headers(&mut parts, &batch.headers);
    names::inodes(&mut parts, batch);
    names::entries(&mut parts, batch);
    names::xattrs(&mut parts, batch);
    extents::replace(&mut parts, batch);
    extents::patches(&mut parts, batch);
    extents::dead(&mut parts, &batch.removed_data);
    audit(&mut parts, &batch.audit);
    let sealed =
        batch.seal.as_ref().map_or_else(|| "NULL::bigint".to_owned(), |seal| seal_part(&mut parts, seal));
    parts.statement.push(&format!(
        "\nSELECT f.layer, {sealed} AS sealed, f.quota_bytes, f.quota_inodes, f.max_file FROM f"
    ));
    parts.statement
}

/// The fence `f`: branch, layer to write, last kept view before it, the floor of the branch, limits.
fn fence_part(parts: &mut Parts, fence: &Fence, batch: &Batch) {
    let tenant = parts.bind(fence.tenant.0);
    let token = parts.bind(fence.token);
    let epoch = parts.bind(fence.epoch);
    let from = parts.bind(int(batch.from_seq));
    let to = parts.bind(int(batch.to_seq));
    let next_ino = parts.bind(int(batch.next_ino));
    let used_bytes = parts.bind(int(batch.used_bytes));
    let used_inodes = parts.bind(int(batch.used_inodes));
    let (reused, all_there) = reused_part(parts, &batch.reused);
    // RETURNING shows what a row has become: a seal keeps what it replaces in columns of their own.
    let (seal, layer, last_view) = match &batch.seal {
        Some(seal) => {
            let request = parts.bind(seal.request.clone());
            let unsealed = format!(
                "NOT EXISTS (SELECT FROM tarbox.layer y WHERE y.tenant = {tenant} AND y.request = {request})"
            );
            let set = format!(
                ", prev_layer = cur_layer, prev_view = last_view,
                 cur_layer = CASE WHEN {unsealed} THEN cur_layer + 1 ELSE cur_layer END,
                 last_view = CASE WHEN {unsealed} THEN cur_layer ELSE last_view END"
            );
            (set, "t.prev_layer", "t.prev_view")
        }
        // What is no change keeps a restore from sealing what another checkpoint shows already.
        None if batch.is_silent() => {
            let since = format!("CASE WHEN silent_to = {from} THEN silent_from ELSE {from} END");
            (format!(", silent_from = {since}, silent_to = {to}"), "t.cur_layer", "t.last_view")
        }
        None => (String::new(), "t.cur_layer", "t.last_view"),
    };
    parts.statement.push(&format!(
        "WITH RECURSIVE {reused}fence AS (
           UPDATE tarbox.tenant t SET seq = {to}, commit_epoch = epoch, next_ino = GREATEST(next_ino, {next_ino}),
             used_bytes = {used_bytes}, used_inodes = {used_inodes}{seal}
           WHERE id = {tenant} AND token = {token} AND epoch = {epoch} AND held AND seq = {from}{all_there}
             AND flattened = (SELECT o.flattened FROM tarbox.tenant o WHERE o.id = {tenant})
           RETURNING t.id AS tenant, t.head_branch AS branch, {layer} AS layer, {last_view} AS last_view,
             t.cur_layer AS next_layer, t.seq, t.next_ino, t.used_bytes,
             t.used_inodes, t.quota_bytes, t.quota_inodes, t.max_file),
         f AS MATERIALIZED (SELECT fence.*, b.ino_floor, b.parent, b.parent_layer FROM fence
           CROSS JOIN LATERAL {branch} b)",
        branch = probe("branch", "t.ino_floor, t.parent, t.parent_layer", "t.branch = fence.branch")
    ));
}

/// Locks headers found by hash against the collector, which takes them FOR UPDATE; and the condition that all were there.
fn reused_part(parts: &mut Parts, reused: &[BlockId]) -> (String, String) {
    if reused.is_empty() {
        return (String::new(), String::new());
    }
    let mut blocks = column(reused, |block| int(*block));
    blocks.sort_unstable();
    blocks.dedup();
    let expected = blocks.len() as i64;
    let blocks = parts.bind(blocks);
    let expected = parts.bind(expected);
    let part = format!(
        "reused AS MATERIALIZED (SELECT b.block FROM tarbox.block b WHERE b.family = $1 AND b.block = ANY ({blocks})
           FOR KEY SHARE), "
    );
    (part, format!(" AND (SELECT count(*) FROM reused) = {expected}"))
}

fn headers(parts: &mut Parts, headers: &[BlockHeader]) {
    if headers.is_empty() {
        return;
    }
    let block = parts.bind(column(headers, |header| int(header.block)));
    let hash = parts.bind(column(headers, |header| header.hash.0.to_vec()));
    let len = parts.bind(column(headers, |header| i64::from(header.len)));
    let codec = parts.bind(column(headers, |header| match header.codec {
        Codec::Raw => 0i16,
        Codec::Zstd => 1,
    }));
    parts.part(
        "header",
        &format!(
            "INSERT INTO tarbox.block (family, block, hash, len, codec)
             SELECT $1, k.* FROM f, unnest({block}::bigint[], {hash}::bytea[], {len}::bigint[], {codec}::smallint[]) k
             ON CONFLICT DO NOTHING"
        ),
    );
}

fn audit(parts: &mut Parts, chunks: &[AuditChunk]) {
    if chunks.is_empty() {
        return;
    }
    let until = parts.bind(column(chunks, |chunk| int(chunk.until)));
    let seq = parts.bind(column(chunks, |chunk| int(chunk.seq)));
    let part = parts.bind(column(chunks, |chunk| i32::try_from(chunk.part).unwrap_or(i32::MAX)));
    let since = parts.bind(column(chunks, |chunk| int(chunk.since)));
    let events = parts.bind(column(chunks, |chunk| i64::from(chunk.events)));
    let data = parts.bind(column(chunks, |chunk| chunk.data.to_vec()));
    parts.part(
        "audit",
        &format!(
            "INSERT INTO tarbox.audit (family, tenant, until, seq, part, since, events, data)
             SELECT $1, f.tenant, k.* FROM f, unnest({until}::bigint[], {seq}::bigint[], {part}::int[],
               {since}::bigint[], {events}::bigint[], {data}::bytea[]) k"
        ),
    );
}

/// Inserts the layer where the request did not seal one before. A name that is taken must not stop a commit that is
/// journaled already: it gets the layer's number.
fn seal_part(parts: &mut Parts, seal: &Seal) -> String {
    let name = parts.bind(seal.name.clone());
    let request = parts.bind(seal.request.clone());
    parts.part(
        "sealed",
        &format!(
            "INSERT INTO tarbox.layer (family, branch, layer, tenant, name, request, seq, next_ino, used_bytes,
               used_inodes)
             SELECT $1, f.branch, f.layer, f.tenant, {free}, {request}, f.seq, f.next_ino, f.used_bytes, f.used_inodes
             FROM f WHERE f.next_layer > f.layer RETURNING layer",
            free = free_name(&name, "f.tenant", "f.branch", "f.layer"),
        ),
    );
    format!(
        "COALESCE((SELECT layer FROM sealed),
           (SELECT y.layer FROM tarbox.layer y WHERE y.tenant = f.tenant AND y.request = {request}))"
    )
}

/// A name, or, where the tenant has a layer of that name, the name with branch and layer behind it.
pub(super) fn free_name(name: &str, tenant: &str, branch: &str, layer: &str) -> String {
    format!(
        "CASE WHEN EXISTS (SELECT FROM tarbox.layer y WHERE y.tenant = {tenant} AND y.name = {name})
         THEN {name} || '-' || {branch} || '.' || {layer} ELSE {name} END"
    )
}
