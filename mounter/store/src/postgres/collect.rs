//! What nobody can see any more goes, in small batches, each a transaction of its own.
//!
//! A block is deleted only under `FOR UPDATE` of its header, after which a new statement (thus a new snapshot) looks for
//! references: a commit that uses it again holds `KEY SHARE` until it is visible, or waits and then finds it gone.

use sqlx::{Row, postgres::PgRow};
use tarbox_types::{BlockId, TenantId};
use uuid::Uuid;

use super::{
    audit,
    chain::probe,
    failure::Failure,
    history,
    layers::{self, lock_branch},
    logins,
    pool::{Pool, Transaction, transact},
    rows::unreadable,
    statement::{Statement, count, int},
    tenants,
};
use crate::{
    error::{Result, StoreError},
    model::{Tenant, TenantState},
};

type Attempt<T> = std::result::Result<T, Failure>;

/// Rows of one batch.
const ROWS: i64 = 2000;
/// Blocks of one batch: each has up to hundreds of parts.
const BLOCKS: i64 = 200;

/// Tables with a history.
const VERSIONED: [&str; 4] = ["inode", "dentry", "xattr", "ext"];

/// One small batch of a family's work; what there was to do, in rows.
pub(super) async fn collect(pool: &Pool, family: i64) -> Result<u64> {
    // A login sees too little to judge what nobody needs: the owner does it in the background.
    if pool.is_of_login() {
        return Ok(0);
    }
    let pruned = prune(pool, family).await?.unwrap_or(0);
    let dead = transact!(pool, "reap dead contents", reap_dead(pool, family))?;
    let dropped = transact!(pool, "collect blocks", collect_dropped(pool, family))?;
    let orphaned = orphaned_uploads(pool, family).await?;
    let gone = pruned + dead + dropped + orphaned;
    if gone == 0 && history::count_one(pool, family).await? {
        return Ok(1);
    }
    Ok(gone)
}

/// One batch of pruning; `None` when there is nothing to prune.
pub(super) async fn prune(pool: &Pool, family: i64) -> Result<Option<u64>> {
    transact!(pool, "prune history", try_prune(pool, family))
}

async fn try_prune(pool: &Pool, family: i64) -> Attempt<Option<u64>> {
    let mut transaction = pool.begin().await?;
    let task = transaction
        .row(
            Statement::new(
                "SELECT id, branch, above, below, upto, current FROM tarbox.prune WHERE family = $1
                 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED",
            )
            .with(family),
        )
        .await?;
    let Some(task) = task else {
        transaction.roll_back().await;
        return Ok(None);
    };
    let branch: i64 = task.try_get("branch")?;
    transaction.rows(lock_branch(family, branch)).await?;
    let (above, below, upto): (i64, i64, i64) =
        (task.try_get("above")?, task.try_get("below")?, task.try_get("upto")?);
    let mut gone = 0;
    for table in VERSIONED {
        let condition = "t.born > $3 AND t.died > 0 AND t.died > $4 AND t.died <= $5";
        let statement = remove_versions(&format!("{table}_h"), condition);
        gone += removed(
            &mut transaction,
            statement.with(family).with(branch).with(above).with(below).with(upto).with(ROWS),
        )
        .await?;
        if task.try_get("current")? {
            let statement = remove_versions(table, "t.born > $3 AND $4 <= $5");
            let left = removed(
                &mut transaction,
                statement.with(family).with(branch).with(above).with(below).with(upto).with(ROWS),
            )
            .await?;
            if left > 0 {
                let anew = "UPDATE tarbox.branch SET left_bytes = NULL WHERE family = $1 AND branch = $2";
                transaction.rows(Statement::new(anew).with(family).with(branch)).await?;
            }
            gone += left;
        }
    }
    if gone == 0 {
        let done = Statement::new("DELETE FROM tarbox.prune WHERE family = $1 AND id = $2");
        transaction.rows(done.with(family).with(task.try_get::<i64, _>("id")?)).await?;
        remove_branch(&mut transaction, family, branch).await?;
    }
    transaction.commit().await?;
    Ok(Some(gone))
}

/// Deletes up to `$6` rows; blocks of extents become candidates, patches go with their versions.
fn remove_versions(table: &str, condition: &str) -> Statement {
    let select = format!(
        "ARRAY(SELECT t.ctid FROM tarbox.{table} t WHERE t.family = $1 AND t.branch = $2 AND {condition} LIMIT $6)"
    );
    let is_history = table.ends_with("_h");
    let (counted, less) = match is_history {
        true => (format!("t.died, {} AS bytes", history::of_row(table)), format!(", {}", history::less())),
        false => ("1".to_owned(), String::new()),
    };
    if !table.starts_with("ext") {
        return Statement::new(format!(
            "WITH gone AS (DELETE FROM tarbox.{table} t WHERE t.ctid = ANY({select}) AND t.family = $1
               AND t.branch = $2 AND {condition} RETURNING {counted}){less}
             SELECT count(*) FROM gone"
        ));
    }
    Statement::new(format!(
        "WITH gone AS (DELETE FROM tarbox.{table} t WHERE t.ctid = ANY({select}) AND t.family = $1
           AND t.branch = $2 AND {condition} RETURNING t.did, t.blk, t.born, t.kind, t.block, t.patches, {counted}),
         blocks AS (INSERT INTO tarbox.dropped (family, block) SELECT $1, block FROM gone WHERE kind = 1),
         {}{less}
         SELECT count(*) FROM gone",
        patches_of("gone")
    ))
}

/// The part of a statement that deletes the patches of versions of branch `$2`.
fn patches_of(versions: &str) -> String {
    let key = "t.branch = $2 AND t.did = v.did AND t.blk = v.blk AND t.born = v.born";
    format!(
        "patches AS (DELETE FROM tarbox.patch p USING (SELECT o.at FROM {versions} v CROSS JOIN LATERAL {} o
           WHERE v.patches > 0 OFFSET 0) o WHERE p.ctid = o.at)",
        probe("patch", "t.ctid AS at", key)
    )
}

/// Deletes all parts of some blocks.
fn parts_of(blocks: &str) -> String {
    format!(
        "DELETE FROM tarbox.block_part p USING (SELECT o.at FROM {blocks} v CROSS JOIN LATERAL {} o OFFSET 0) o
         WHERE p.ctid = o.at",
        probe("block_part", "t.ctid AS at", "t.block = v.block")
    )
}

async fn removed(transaction: &mut Transaction, statement: Statement) -> Attempt<u64> {
    let row = transaction.row(statement).await?.ok_or(sqlx::Error::RowNotFound)?;
    Ok(count(row.try_get(0)?))
}

/// A branch that nobody writes, looks at or began with, and that has no rows left.
async fn remove_branch(transaction: &mut Transaction, family: i64, branch: i64) -> Attempt<()> {
    let rows = VERSIONED
        .iter()
        .flat_map(|table| [(*table).to_owned(), format!("{table}_h")])
        .map(|table| {
            format!("AND NOT EXISTS (SELECT FROM tarbox.{table} r WHERE r.family = b.family AND r.branch = b.branch)")
        })
        .collect::<Vec<_>>()
        .join(" ");
    let gone = transaction
        .rows(
            Statement::new(format!(
                "DELETE FROM tarbox.branch b WHERE b.family = $1 AND b.branch = $2 AND {UNUSED} {rows} RETURNING 1"
            ))
            .with(family)
            .with(branch),
        )
        .await?;
    if !gone.is_empty() {
        let dead = "DELETE FROM tarbox.dead_data WHERE family = $1 AND branch = $2";
        transaction.rows(Statement::new(dead).with(family).with(branch)).await?;
    }
    Ok(())
}

/// Nobody writes branch `b`, no view shows it, no other began with it.
const UNUSED: &str =
    "NOT EXISTS (SELECT FROM tarbox.tenant t WHERE t.head_branch = b.branch AND (NOT t.deleted OR t.held))
     AND NOT EXISTS (SELECT FROM tarbox.layer y WHERE y.family = b.family AND y.branch = b.branch)
     AND NOT EXISTS (SELECT FROM tarbox.branch c WHERE c.family = b.family AND c.parent = b.branch)";

/// Some rows of one dead content: to the history where a kept view sees them, else away.
async fn reap_dead(pool: &Pool, family: i64) -> Attempt<u64> {
    let mut transaction = pool.begin().await?;
    let dead = transaction
        .row(
            Statement::new(
                "SELECT branch, did, died FROM tarbox.dead_data WHERE family = $1 AND NOT reaped LIMIT 1
                 FOR UPDATE SKIP LOCKED",
            )
            .with(family),
        )
        .await?;
    let Some(dead) = dead else {
        transaction.roll_back().await;
        return Ok(0);
    };
    let branch: i64 = dead.try_get("branch")?;
    transaction.rows(lock_branch(family, branch)).await?;
    let columns = "did, blk, born, kind, block, data, alloc, patches, patch_bytes";
    let gone = removed(
        &mut transaction,
        Statement::new(format!(
            "WITH gone AS (DELETE FROM tarbox.ext t WHERE t.ctid = ANY(ARRAY(SELECT t.ctid FROM tarbox.ext t
                 WHERE t.family = $1 AND t.branch = $2 AND t.did = $3 LIMIT $5))
                 AND t.family = $1 AND t.branch = $2 AND t.did = $3 RETURNING {columns}),
             seen AS (SELECT g.*, EXISTS (SELECT FROM tarbox.layer y WHERE y.family = $1 AND y.branch = $2
                 AND y.layer >= g.born AND y.layer < $4) AS kept FROM gone g),
             history AS (INSERT INTO tarbox.ext_h (family, branch, {columns}, died)
               SELECT $1, $2, {columns}, $4 FROM seen WHERE kept),
             more AS (UPDATE tarbox.branch b SET history_bytes = b.history_bytes + s.bytes
               FROM (SELECT COALESCE(sum({}), 0)::bigint AS bytes FROM seen t WHERE t.kept) s
               WHERE b.family = $1 AND b.branch = $2 AND b.history_upto >= $4 AND s.bytes > 0),
             blocks AS (INSERT INTO tarbox.dropped (family, block)
               SELECT $1, block FROM seen WHERE NOT kept AND kind = 1),
             unseen AS (SELECT * FROM seen WHERE NOT kept),
             {}
             SELECT count(*) FROM gone",
            history::of_row("ext"),
            patches_of("unseen")
        ))
        .with(family)
        .with(branch)
        .with(dead.try_get::<i64, _>("did")?)
        .with(dead.try_get::<i64, _>("died")?)
        .with(ROWS),
    )
    .await?;
    if gone < ROWS as u64 {
        // Where ancestors may have rows of it, that it is dead has to be known as long as they are ancestors.
        for done in [
            "DELETE FROM tarbox.dead_data d USING tarbox.branch b WHERE d.family = $1 AND d.branch = $2 AND d.did = $3
               AND b.family = $1 AND b.branch = $2 AND (b.parent IS NULL OR d.did >= b.ino_floor)",
            "UPDATE tarbox.dead_data SET reaped = true WHERE family = $1 AND branch = $2 AND did = $3",
        ] {
            let done = Statement::new(done).with(family).with(branch);
            transaction.rows(done.with(dead.try_get::<i64, _>("did")?)).await?;
        }
    }
    transaction.commit().await?;
    Ok(gone + 1)
}

/// Some candidates: those that nothing refers to go. One that a commit is using at this moment stays a candidate.
async fn collect_dropped(pool: &Pool, family: i64) -> Attempt<u64> {
    let mut transaction = pool.begin().await?;
    let taken = transaction
        .rows(
            Statement::new(
                "DELETE FROM tarbox.dropped d WHERE d.family = $1 AND d.id = ANY(ARRAY(
                   SELECT id FROM tarbox.dropped WHERE family = $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED))
                 RETURNING d.block",
            )
            .with(family)
            .with(BLOCKS),
        )
        .await?;
    if taken.is_empty() {
        transaction.roll_back().await;
        return Ok(0);
    }
    let mut candidates =
        taken.iter().map(|row| row.try_get(0)).collect::<std::result::Result<Vec<i64>, _>>()?;
    candidates.sort_unstable();
    candidates.dedup();
    let locked = transaction
        .rows(
            Statement::new(
                "SELECT b.block FROM tarbox.block b WHERE b.family = $1 AND b.block = ANY($2) FOR UPDATE SKIP LOCKED",
            )
            .with(family)
            .with(candidates.clone()),
        )
        .await?;
    let locked = locked.iter().map(|row| row.try_get(0)).collect::<std::result::Result<Vec<i64>, _>>()?;
    let busy = transaction
        .rows(
            Statement::new(
                "INSERT INTO tarbox.dropped (family, block) SELECT $1, k FROM unnest($2::bigint[]) AS k
                 WHERE k <> ALL ($3) AND EXISTS (SELECT FROM tarbox.block b WHERE b.family = $1 AND b.block = k OFFSET 0)
                 RETURNING 1",
            )
            .with(family)
            .with(candidates.clone())
            .with(locked.clone()),
        )
        .await?;
    transaction
        .rows(
            Statement::new(format!(
                "WITH gone AS (DELETE FROM tarbox.block b WHERE b.family = $1 AND b.block = ANY($2)
                   AND NOT EXISTS (SELECT FROM tarbox.ext e
                     WHERE e.family = $1 AND e.block = b.block AND e.kind = 1 OFFSET 0)
                   AND NOT EXISTS (SELECT FROM tarbox.ext_h e
                     WHERE e.family = $1 AND e.block = b.block AND e.kind = 1 OFFSET 0)
                   RETURNING b.block)
                 {}",
                parts_of("gone")
            ))
            .with(family)
            .with(locked),
        )
        .await?;
    transaction.commit().await?;
    Ok((candidates.len() - busy.len()) as u64)
}

/// See [`crate::TenantStore::stray_blocks`].
pub(super) async fn stray(
    pool: &Pool,
    family: i64,
    after: BlockId,
    limit: usize,
) -> Result<(Vec<BlockId>, Option<BlockId>)> {
    let found = pool
        .read("look for stray blocks", || {
            Statement::new(
                "SELECT b.block, NOT EXISTS (SELECT FROM tarbox.ext e WHERE e.family = $1 AND e.block = b.block AND e.kind = 1 OFFSET 0)
                   AND NOT EXISTS (SELECT FROM tarbox.ext_h e WHERE e.family = $1 AND e.block = b.block AND e.kind = 1 OFFSET 0)
                   AND NOT EXISTS (SELECT FROM tarbox.dropped d WHERE d.family = $1 AND d.block = b.block)
                 FROM (SELECT block FROM tarbox.block WHERE family = $1 AND block > $2 ORDER BY block LIMIT $3) b ORDER BY b.block",
            )
            .with(family)
            .with(int(after))
            .with(limit as i64)
        })
        .await?;
    let read = |row: &PgRow| Ok((row.try_get(0).map(count)?, row.try_get::<bool, _>(1)?));
    let page: Vec<(BlockId, bool)> =
        found.iter().map(|row| read(row).map_err(unreadable)).collect::<Result<_>>()?;
    let next = page.last().map(|(block, _)| *block).filter(|_| page.len() == limit);
    Ok((page.into_iter().filter(|(_, stray)| *stray).map(|(block, _)| block).collect(), next))
}

/// See [`crate::TenantStore::offer_blocks`].
pub(super) async fn offer(pool: &Pool, family: i64, blocks: &[BlockId]) -> Result<()> {
    pool.write("offer blocks to the collector", || {
        let blocks: Vec<i64> = blocks.iter().map(|block| int(*block)).collect();
        Statement::new(
            "INSERT INTO tarbox.dropped (family, block) SELECT $1, k FROM unnest($2::bigint[]) AS k",
        )
        .with(family)
        .with(blocks)
    })
    .await?;
    Ok(())
}

/// Uploads of ranges whose epoch is over: no commit can make them visible any more.
async fn orphaned_uploads(pool: &Pool, family: i64) -> Result<u64> {
    let done = pool
        .write("collect orphaned uploads", || {
            Statement::new(format!(
                "WITH r AS MATERIALIZED (SELECT r.first, r.count FROM tarbox.reservation r
                   LEFT JOIN tarbox.tenant t ON t.id = r.tenant
                   WHERE r.family = $1 AND (t.id IS NULL OR t.deleted OR t.epoch > r.epoch)
                   ORDER BY r.first LIMIT 1 FOR UPDATE OF r SKIP LOCKED),
                 lost AS (SELECT g.block FROM r
                   CROSS JOIN LATERAL generate_series(r.first, r.first + r.count - 1) AS g(block)
                   WHERE NOT EXISTS (SELECT FROM tarbox.block b WHERE b.family = $1 AND b.block = g.block OFFSET 0)),
                 parts AS ({} RETURNING 1),
                 over AS (DELETE FROM tarbox.reservation d USING r WHERE d.family = $1 AND d.first = r.first RETURNING 1)
                 SELECT (SELECT count(*) FROM over) + (SELECT count(*) FROM parts)",
                parts_of("lost")
            ))
            .with(family)
        })
        .await?;
    done.first().map_or(Ok(0), |row| row.try_get(0).map(count).map_err(unreadable))
}

/// Whether a deleted tenant's data may go; who held it and is dead can commit no more.
async fn check_reapable(pool: &Pool, tenant: Tenant) -> Result<()> {
    if let Some(holder) = tenant.holder {
        return Err(StoreError::Held { tenant: tenant.id, holder });
    }
    let id = tenant.id;
    if tenant.is_abandoned {
        let token = Uuid::new_v4();
        pool.write("fence a holder off", || {
            Statement::new(
                "UPDATE tarbox.tenant SET held = false, epoch = epoch + 1, token = $2 WHERE id = $1 AND deleted AND epoch = $3",
            )
            .with(id.0)
            .with(token)
            .with(tenant.epoch)
        })
        .await?;
    }
    let kept = pool
        .read("look for snapshots", || {
            Statement::new("SELECT 1 FROM tarbox.snapshot WHERE tenant = $1 AND purpose < 2 LIMIT 1")
                .with(id.0)
        })
        .await?;
    if kept.is_empty() {
        return Ok(());
    }
    Err(StoreError::Refused(format!("snapshots of tenant {id} are kept, which need its rows")))
}

/// Removes a tenant's row, and what is noted of its checkpoints and of its nodes: they went with it.
const REMOVED: &str = "WITH t AS (DELETE FROM tarbox.tenant WHERE id = $1 AND deleted RETURNING id, family),
     n AS (DELETE FROM tarbox.snapshot n USING t WHERE n.tenant = t.id AND n.purpose = 3),
     g AS (DELETE FROM tarbox.tag g USING t WHERE g.tenant = t.id),
     p AS (DELETE FROM tarbox.publication p USING t WHERE p.tenant = t.id)";

/// Removes some of a deleted tenant's data; `true` when its row is gone.
pub(super) async fn reap(pool: &Pool, id: TenantId) -> Result<bool> {
    let Some(tenant) = tenants::by_id(pool, id).await? else { return Ok(true) };
    if tenant.state == TenantState::Live {
        return Err(StoreError::Refused(format!("tenant {id} has not been deleted")));
    }
    let family = tenant.family;
    check_reapable(pool, tenant).await?;
    logins::remove_all(pool, id).await?;
    let relatives = pool
        .read("look for relatives", || {
            Statement::new("SELECT 1 FROM tarbox.tenant WHERE family = $1 AND id <> $2 LIMIT 1")
                .with(family)
                .with(id.0)
        })
        .await?;
    if relatives.is_empty() {
        return reap_family(pool, family, id).await;
    }
    if release_history(pool, family).await? {
        return Ok(false);
    }
    if audit::remove_some(pool, family, id).await? {
        return Ok(false);
    }
    pool.write("remove a tenant", || Statement::new(format!("{REMOVED} SELECT 1")).with(id.0)).await?;
    Ok(true)
}

/// Of a family with other tenants goes what none of them stands on: layers of tenants that are gone (unless one of their snapshots is kept),
/// then the branches that nobody needs. Returns whether there was something.
pub(super) async fn release_history(pool: &Pool, family: i64) -> Result<bool> {
    if prune(pool, family).await?.is_some() {
        return Ok(true);
    }
    let layer = pool
        .read("look for layers of deleted tenants", || {
            Statement::new(
                "SELECT y.branch, y.layer FROM tarbox.layer y WHERE y.family = $1
                   AND NOT EXISTS (SELECT FROM tarbox.tenant t WHERE t.id = y.tenant AND (NOT t.deleted OR t.held))
                   AND NOT EXISTS (SELECT FROM tarbox.snapshot n WHERE n.tenant = y.tenant AND n.purpose < 2)
                   AND NOT EXISTS (SELECT FROM tarbox.branch c WHERE c.family = $1 AND c.parent = y.branch
                     AND c.parent_layer = y.layer) LIMIT 1",
            )
            .with(family)
        })
        .await?;
    if let Some(row) = layer.first() {
        let key = || Ok((row.try_get(0)?, row.try_get(1)?));
        let (branch, layer) = key().map_err(unreadable)?;
        layers::remove(pool, family, branch, layer).await?;
        return Ok(true);
    }
    // A branch without any view: everything in it goes.
    let begun = pool
        .write("note branches to remove", || {
            Statement::new(format!(
                "INSERT INTO tarbox.prune (family, branch, above, below, upto, current)
                 SELECT $1, b.branch, -1, -1, {max}, true FROM tarbox.branch b WHERE b.family = $1 AND {UNUSED}
                 RETURNING 1",
                max = i64::MAX
            ))
            .with(family)
        })
        .await?;
    Ok(!begun.is_empty())
}

/// Of a family whose last tenant is deleted goes everything, table by table.
async fn reap_family(pool: &Pool, family: i64, id: TenantId) -> Result<bool> {
    for table in [
        "patch",
        "ext",
        "ext_h",
        "xattr",
        "xattr_h",
        "dentry",
        "dentry_h",
        "inode",
        "inode_h",
        "dead_data",
        "prune",
        "dropped",
        "block_part",
        "block",
        "reservation",
        "layer",
        "branch",
        "audit",
    ] {
        let done = pool
            .write("remove a family's rows", || {
                Statement::new(format!(
                    "DELETE FROM tarbox.{table} t WHERE t.ctid = ANY(ARRAY(SELECT t.ctid FROM tarbox.{table} t
                     WHERE t.family = $1 LIMIT $2)) AND t.family = $1 RETURNING 1"
                ))
                .with(family)
                .with(ROWS)
            })
            .await?;
        if done.len() as i64 == ROWS {
            return Ok(false);
        }
    }
    pool.write("remove a tenant", || {
        Statement::new(format!("{REMOVED} DELETE FROM tarbox.family f USING t WHERE f.family = t.family"))
            .with(id.0)
    })
    .await?;
    Ok(true)
}
