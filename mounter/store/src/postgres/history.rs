//! How many bytes a tenant's history takes: what its kept views show and its head does not.
//!
//! Of each branch it is known what the versions take that died up to a layer; younger ones are added up when they are asked for.
//! Nothing is counted by a commit: it only adds versions that die in the layer that is written. Whoever changes what is counted
//! holds the lock of the branch's row.

use sqlx::Row;

use super::{
    TenantRows,
    failure::Failure,
    pool::{Pool, Transaction, transact},
    rows::unreadable,
    statement::{Statement, count},
};
use crate::{
    error::Result,
    model::{DEAD_ROWS, ROW_BYTES},
};

type Attempt<T> = std::result::Result<T, Failure>;

/// Tables with a history.
const TABLES: [&str; 4] = ["inode", "dentry", "xattr", "ext"];

/// What a row `t` takes, by its table. Its columns may be those of a deleted row.
pub(super) fn of_row(table: &str) -> String {
    match table {
        "xattr" | "xattr_h" => format!("({ROW_BYTES} + COALESCE(octet_length(t.value), 0))::bigint"),
        "ext" | "ext_h" => format!(
            "({ROW_BYTES} + t.patch_bytes + COALESCE(octet_length(t.data), 0) + CASE WHEN t.kind = 1 THEN COALESCE(
               (SELECT b.len FROM tarbox.block b WHERE b.family = $1 AND b.block = t.block OFFSET 0), 0) ELSE 0 END)::bigint"
        ),
        _ => format!("{ROW_BYTES}::bigint"),
    }
}

/// What the rows of a branch take: a sum of one statement for each table, whose rows `t` meet a condition.
fn sum(tables: &[String], branch: &str, condition: &str) -> String {
    let each = tables.iter().map(|table| {
        format!(
            "COALESCE((SELECT sum({}) FROM tarbox.{table} t WHERE t.family = $1 AND t.branch = {branch} AND {condition}), 0)",
            of_row(table)
        )
    });
    format!("({})::bigint", each.collect::<Vec<_>>().join(" + "))
}

fn history() -> Vec<String> {
    TABLES.iter().map(|table| format!("{table}_h")).collect()
}

/// What versions of a branch take that died beyond one layer, up to another one.
fn died(branch: &str, after: &str, upto: &str) -> String {
    sum(&history(), branch, &format!("t.died > 0 AND t.died > {after} AND t.died <= {upto}"))
}

/// What contents take that were removed, that a view of the branch shows, and that the collector has not come to yet.
fn dead(branch: &str) -> String {
    format!(
        "COALESCE((SELECT sum({}) FROM (SELECT e.* FROM tarbox.dead_data d CROSS JOIN LATERAL (SELECT * FROM tarbox.ext e
             WHERE e.family = $1 AND e.branch = d.branch AND e.did = d.did OFFSET 0) e
           WHERE d.family = $1 AND d.branch = {branch} AND NOT d.reaped AND EXISTS (SELECT FROM tarbox.layer y
             WHERE y.family = $1 AND y.branch = d.branch AND y.layer >= e.born AND y.layer < d.died)
           LIMIT {DEAD_ROWS}) t), 0)::bigint",
        of_row("ext")
    )
}

/// The last sealed layer of branch `b` that is a head; beyond all for one to whose history nothing is added any more.
const SEALED: &str = "COALESCE((SELECT t.cur_layer - 1 FROM tarbox.tenant t WHERE t.head_branch = b.branch
     AND t.family = b.family AND NOT t.deleted), 9223372036854775807)";

impl TenantRows {
    pub(super) async fn history_of_tenant(&self) -> Result<u64> {
        let guess = "GREATEST(0, COALESCE((SELECT y.used_bytes FROM tarbox.layer y WHERE y.family = $1
               AND y.branch = b.branch ORDER BY y.layer DESC LIMIT 1), 0)
             - COALESCE((SELECT y.used_bytes FROM tarbox.layer y WHERE y.family = $1 AND y.branch = b.parent
               AND y.layer = b.parent_layer), 0))";
        let found = self
            .pool
            .read("add up a history", || {
                Statement::new(format!(
                    "SELECT COALESCE(sum(b.history_bytes + {}
                       + CASE WHEN b.branch = h.head_branch THEN {} ELSE COALESCE(b.left_bytes, {guess}) END), 0)::bigint
                     FROM tarbox.tenant h JOIN tarbox.branch b ON b.family = $1 AND b.tenant = h.id WHERE h.id = $2",
                    died("b.branch", "b.history_upto", "9223372036854775807"),
                    dead("b.branch")
                ))
                .with(self.family)
                .with(self.id.0)
            })
            .await?;
        found.first().map_or(Ok(0), |row| row.try_get(0).map(count).map_err(unreadable))
    }
}

/// Of each branch of tenant `$2`: what is known, and what its rows take as far as that is known.
pub(super) fn comparison() -> String {
    let tables = TABLES.map(str::to_owned);
    format!(
        "SELECT b.branch, b.history_bytes + COALESCE(b.left_bytes, 0),
           {} + CASE WHEN b.left_bytes IS NULL THEN 0 ELSE {} END
         FROM tarbox.branch b WHERE b.family = $1 AND b.tenant = $2",
        died("b.branch", "0", "b.history_upto"),
        sum(&tables, "b.branch", "true")
    )
}

/// Counts what is not counted of one branch; whether there was one.
pub(super) async fn count_one(pool: &Pool, family: i64) -> Result<bool> {
    transact!(pool, "count a history", try_count_one(pool, family))
}

async fn try_count_one(pool: &Pool, family: i64) -> Attempt<bool> {
    let mut transaction = pool.begin().await?;
    let done = count_died(&mut transaction, family).await? || count_left(&mut transaction, family).await?;
    if done {
        transaction.commit().await?;
    } else {
        transaction.roll_back().await;
    }
    Ok(done)
}

async fn count_died(transaction: &mut Transaction, family: i64) -> Attempt<bool> {
    let behind = format!(
        "SELECT b.branch, b.history_upto, {SEALED} AS upto FROM tarbox.branch b
         WHERE b.family = $1 AND b.history_upto < {SEALED} LIMIT 1 FOR NO KEY UPDATE OF b SKIP LOCKED"
    );
    let Some(row) = transaction.row(Statement::new(behind).with(family)).await? else { return Ok(false) };
    let counted = format!(
        "UPDATE tarbox.branch b SET history_bytes = history_bytes + {}, history_upto = $4
         WHERE b.family = $1 AND b.branch = $2",
        died("$2", "$3", "$4")
    );
    let counted = Statement::new(counted).with(family).with(row.try_get::<i64, _>("branch")?);
    let counted = counted.with(row.try_get::<i64, _>("history_upto")?).with(row.try_get::<i64, _>("upto")?);
    transaction.rows(counted).await?;
    Ok(true)
}

/// The present rows of a branch that is no head any more: its views alone show them, and nothing moves them to its history any more.
async fn count_left(transaction: &mut Transaction, family: i64) -> Attempt<bool> {
    let uncounted = "SELECT b.branch FROM tarbox.branch b WHERE b.family = $1 AND b.left_bytes IS NULL
           AND NOT EXISTS (SELECT FROM tarbox.tenant t WHERE t.head_branch = b.branch AND NOT t.deleted)
           AND EXISTS (SELECT FROM tarbox.tenant t WHERE t.id = b.tenant AND NOT t.deleted)
           AND NOT EXISTS (SELECT FROM tarbox.dead_data d WHERE d.family = $1 AND d.branch = b.branch AND NOT d.reaped)
           AND NOT EXISTS (SELECT FROM tarbox.prune p WHERE p.family = $1 AND p.branch = b.branch)
         LIMIT 1 FOR NO KEY UPDATE OF b SKIP LOCKED";
    let Some(row) = transaction.row(Statement::new(uncounted).with(family)).await? else { return Ok(false) };
    let tables = TABLES.map(str::to_owned);
    let counted = format!(
        "UPDATE tarbox.branch b SET left_bytes = {} WHERE b.family = $1 AND b.branch = $2",
        sum(&tables, "$2", "true")
    );
    transaction.rows(Statement::new(counted).with(family).with(row.try_get::<i64, _>("branch")?)).await?;
    Ok(true)
}

/// The part of a statement that takes versions `gone` of branch `$2` off what is counted; `gone` has `died` and `bytes`.
pub(super) fn less() -> String {
    "less AS (UPDATE tarbox.branch b SET history_bytes = GREATEST(0, b.history_bytes - s.bytes)
       FROM (SELECT COALESCE(sum(g.bytes), 0)::bigint AS bytes FROM gone g JOIN tarbox.branch o
         ON o.family = $1 AND o.branch = $2 AND g.died <= o.history_upto) s
       WHERE b.family = $1 AND b.branch = $2 AND s.bytes > 0)"
        .to_owned()
}
