//! How many bytes a tenant's history takes: what its kept views show and its head does not.
//!
//! Of each branch it is known what the versions take that died up to a layer; younger ones are added up when they are asked for.
//! Nothing is counted by a commit: it only adds versions that die in the layer that is written.

use rusqlite::{Connection, OptionalExtension, ToSql, params, types::Value};
use tarbox_types::{BranchId, Layer, TenantId};

use super::{fault::Outcome, rows::TenantRow};
use crate::model::{DEAD_ROWS, ROW_BYTES};

/// Tables of versions that died, with what a row `t` takes beside [`ROW_BYTES`].
const TABLES: [(&str, &str); 4] =
    [("inode", "0"), ("dentry", "0"), ("xattr", "coalesce(length(t.data), 0)"), ("ext", EXT)];

const EXT: &str = "CASE t.kind WHEN 1 THEN coalesce((SELECT b.len FROM block b WHERE b.block = t.block), 0)
     WHEN 2 THEN coalesce((SELECT length(y.data) FROM bytes y WHERE y.id = t.block), 0) ELSE 0 END
     + coalesce((SELECT sum(p.len) FROM patch p WHERE p.branch = t.branch AND p.did = t.did AND p.blk = t.blk
       AND p.born = t.born), 0)";

/// What versions of a branch take that died beyond `after`, up to `upto`.
fn died(connection: &Connection, branch: BranchId, after: Layer, upto: Layer) -> Outcome<i64> {
    let mut sum = 0;
    for (table, bytes) in TABLES {
        let sql = format!(
            "SELECT coalesce(sum({ROW_BYTES} + {bytes}), 0) FROM {table}_h t
             WHERE t.branch = ?1 AND t.died > ?2 AND t.died <= ?3"
        );
        let parameters = params![branch, after, upto];
        sum += connection.prepare_cached(&sql)?.query_row(parameters, |row| row.get::<_, i64>(0))?;
    }
    Ok(sum)
}

/// What contents take that were removed, that a view of the branch shows, and that the collector has not come to yet.
fn dead(connection: &Connection, branch: BranchId) -> Outcome<i64> {
    let sql = format!(
        "SELECT coalesce(sum({ROW_BYTES} + {EXT}), 0) FROM (SELECT e.* FROM dead d
           JOIN ext e ON e.branch = d.branch AND e.did = d.did WHERE d.branch = ?1 AND d.reaped = 0
             AND (EXISTS(SELECT 1 FROM layer y WHERE y.branch = ?1 AND y.layer >= e.born AND y.layer < d.died)
               OR EXISTS(SELECT 1 FROM branch c WHERE c.parent = ?1 AND c.parent_layer >= e.born AND c.parent_layer < d.died))
           LIMIT {DEAD_ROWS}) t"
    );
    Ok(connection.prepare_cached(&sql)?.query_row([branch], |row| row.get(0))?)
}

/// What the present rows of a branch take: of one that is no head any more, whose views alone show them.
fn left(connection: &Connection, branch: BranchId) -> Outcome<i64> {
    let mut sum = 0;
    for (table, bytes) in TABLES {
        let sql =
            format!("SELECT coalesce(sum({ROW_BYTES} + {bytes}), 0) FROM {table} t WHERE t.branch = ?1");
        sum += connection.prepare_cached(&sql)?.query_row([branch], |row| row.get::<_, i64>(0))?;
    }
    Ok(sum)
}

/// What is known of a branch.
struct Known {
    branch: BranchId,
    bytes: i64,
    upto: Layer,
    /// Nothing where that has not been counted: it is guessed then.
    left: Option<i64>,
    guess: i64,
}

const KNOWN: &str = "SELECT b.branch, b.history_bytes, b.history_upto, b.left_bytes, max(0,
       coalesce((SELECT y.used_bytes FROM layer y WHERE y.branch = b.branch ORDER BY y.layer DESC LIMIT 1), 0)
       - coalesce((SELECT y.used_bytes FROM layer y WHERE y.branch = b.parent AND y.layer = b.parent_layer), 0))
     FROM branch b WHERE b.tenant = ?1";

/// All that the tenant's history takes.
pub(super) fn bytes(connection: &Connection, id: TenantId) -> Outcome<u64> {
    let row = TenantRow::need(connection, id)?;
    let branches: Vec<Known> = connection
        .prepare_cached(KNOWN)?
        .query_map([id.0.as_bytes()], |row| {
            Ok(Known {
                branch: row.get(0)?,
                bytes: row.get(1)?,
                upto: row.get(2)?,
                left: row.get(3)?,
                guess: row.get(4)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut sum = 0;
    for known in branches {
        sum += known.bytes + died(connection, known.branch, known.upto, Layer::MAX)?;
        // Of a line that was left they are among what is left.
        sum += match known.branch == row.head_branch {
            true => dead(connection, known.branch)?,
            false => known.left.unwrap_or(known.guess),
        };
    }
    Ok(u64::try_from(sum).unwrap_or(0))
}

/// Of each branch of a tenant: what is known, and what its rows take as far as that is known.
pub(super) fn compare(connection: &Connection, id: TenantId) -> Outcome<Vec<(BranchId, i64, i64)>> {
    let branches: Vec<(BranchId, i64, Layer, Option<i64>)> = connection
        .prepare_cached(
            "SELECT branch, history_bytes, history_upto, left_bytes FROM branch WHERE tenant = ?1",
        )?
        .query_map([id.0.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut compared = Vec::with_capacity(branches.len());
    for (branch, bytes, upto, known) in branches {
        let found = if known.is_some() { left(connection, branch)? } else { 0 };
        compared.push((branch, bytes + known.unwrap_or(0), died(connection, branch, 0, upto)? + found));
    }
    Ok(compared)
}

/// Has the histories of a tenant counted anew.
pub(super) fn recount(connection: &Connection, id: TenantId) -> Outcome<()> {
    connection.execute(
        "UPDATE branch SET history_bytes = 0, history_upto = 0, left_bytes = NULL WHERE tenant = ?1",
        [id.0.as_bytes()],
    )?;
    Ok(())
}

/// A branch of which sealed layers have not been counted yet, with the last of them. Nothing is added to one that is no head any more.
const BEHIND: &str = "SELECT b.branch, b.history_upto, coalesce(t.cur_layer - 1, ?1) FROM branch b
     LEFT JOIN tenant t ON t.head_branch = b.branch AND t.state = 0
     WHERE b.history_upto < coalesce(t.cur_layer - 1, ?1) LIMIT 1";

/// A branch that is no head any more, and whose present rows have not been counted: nothing moves them to its history any more.
const UNCOUNTED: &str = "SELECT b.branch FROM branch b WHERE b.left_bytes IS NULL AND b.tenant IS NOT NULL
     AND NOT EXISTS(SELECT 1 FROM tenant t WHERE t.head_branch = b.branch AND t.state = 0)
     AND NOT EXISTS(SELECT 1 FROM dead d WHERE d.branch = b.branch AND d.reaped = 0)
     AND NOT EXISTS(SELECT 1 FROM prune p WHERE p.branch = b.branch) LIMIT 1";

/// Whether there is something for [`count_one`].
pub(super) fn is_behind(connection: &Connection) -> Outcome<bool> {
    Ok(connection.prepare_cached(BEHIND)?.exists([Layer::MAX])?
        || connection.prepare_cached(UNCOUNTED)?.exists([])?)
}

/// Counts what is not counted of one branch.
pub(super) fn count_one(connection: &Connection) -> Outcome<u64> {
    let behind = connection
        .prepare_cached(BEHIND)?
        .query_row([Layer::MAX], |row| {
            Ok((row.get::<_, BranchId>(0)?, row.get::<_, Layer>(1)?, row.get::<_, Layer>(2)?))
        })
        .optional()?;
    if let Some((branch, after, upto)) = behind {
        let more = died(connection, branch, after, upto)?;
        connection
            .prepare_cached(
                "UPDATE branch SET history_bytes = history_bytes + ?2, history_upto = ?3 WHERE branch = ?1",
            )?
            .execute(params![branch, more, upto])?;
        return Ok(1);
    }
    let uncounted: Option<BranchId> =
        connection.prepare_cached(UNCOUNTED)?.query_row([], |row| row.get(0)).optional()?;
    let Some(branch) = uncounted else { return Ok(0) };
    let bytes = left(connection, branch)?;
    connection
        .prepare_cached("UPDATE branch SET left_bytes = ?2 WHERE branch = ?1")?
        .execute(params![branch, bytes])?;
    Ok(1)
}

/// Up to which layer the versions of a branch that died are counted.
pub(super) fn counted_upto(connection: &Connection, branch: BranchId) -> Outcome<Layer> {
    let known = connection
        .prepare_cached("SELECT history_upto FROM branch WHERE branch = ?1")?
        .query_row([branch], |row| row.get(0))
        .optional()?;
    Ok(known.unwrap_or(0))
}

/// Versions that are counted have come or gone.
pub(super) fn adjust(connection: &Connection, branch: BranchId, by: i64) -> Outcome<()> {
    if by != 0 {
        connection
            .prepare_cached("UPDATE branch SET history_bytes = max(0, history_bytes + ?2) WHERE branch = ?1")?
            .execute(params![branch, by])?;
    }
    Ok(())
}

/// Present rows have gone: they are to be counted anew.
pub(super) fn recount_left(connection: &Connection, branch: BranchId) -> Outcome<()> {
    connection
        .prepare_cached("UPDATE branch SET left_bytes = NULL WHERE branch = ?1 AND left_bytes IS NOT NULL")?
        .execute([branch])?;
    Ok(())
}

/// What the version of a plain table takes that died at `died`.
pub(super) fn of_row(
    connection: &Connection,
    table: &str,
    branch: BranchId,
    key: &[&str],
    at: &[Value],
    died: Layer,
) -> Outcome<i64> {
    let more = TABLES.iter().find(|(name, _)| *name == table).map_or("0", |(_, more)| more);
    let key = key.iter().enumerate().map(|(at, column)| format!("t.{column} = ?{}", at + 3));
    let key = key.collect::<Vec<_>>().join(" AND ");
    let sql =
        format!("SELECT {ROW_BYTES} + {more} FROM {table}_h t WHERE t.branch = ?1 AND t.died = ?2 AND {key}");
    let mut parameters: Vec<&dyn ToSql> = vec![&branch, &died];
    parameters.extend(at.iter().map(|value| value as &dyn ToSql));
    let bytes = connection.prepare_cached(&sql)?.query_row(&parameters[..], |row| row.get(0));
    Ok(bytes.optional()?.unwrap_or(0))
}

/// What the version takes that died at `died`, or, for 0, the present one.
pub(super) fn of_extent(
    connection: &Connection,
    branch: BranchId,
    did: i64,
    blk: i64,
    died: Layer,
) -> Outcome<i64> {
    let (table, and) = if died == 0 { ("ext", "?4 = 0") } else { ("ext_h", "t.died = ?4") };
    let sql = format!(
        "SELECT {ROW_BYTES} + {EXT} FROM {table} t WHERE t.branch = ?1 AND t.did = ?2 AND t.blk = ?3 AND {and}"
    );
    let parameters = params![branch, did, blk, died];
    Ok(connection.prepare_cached(&sql)?.query_row(parameters, |row| row.get(0)).optional()?.unwrap_or(0))
}
