//! What nobody needs any more goes, in small transactions: pruned history, dead contents, dropped blocks,
//! branches without views, uploads of dead writers, deleted tenants.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, Row, params};
use tarbox_types::{BlockId, BranchId, DataId, Layer, SessionId, TenantId};

use super::{
    audit,
    commit::Version,
    family::Family,
    fault::Outcome,
    history, layers,
    rows::{self, int, number},
};
use crate::{error::Result, model::ROW_BYTES};

/// Rows of one transaction: about 10 ms, so that no commit waits long.
const BATCH: i64 = 1000;
/// Parts looked at by one step of the walk over `blocks.db`.
const WALK: i64 = 512;

/// One small batch of everything; returns how many rows and blocks went.
pub(super) fn collect(family: &Family, is_alive: &dyn Fn(SessionId) -> bool) -> Result<u64> {
    let mut gone = prune(family)?;
    if has_rows(family, "SELECT 1 FROM dead WHERE reaped = 0")? {
        gone += family.write("reaping contents", reap_dead)?;
    }
    gone += reap_branches(family)?;
    if has_rows(family, "SELECT 1 FROM dropped")? {
        // Headers first: a crash between leaves parts without headers, which the walk finds.
        let blocks = family.write("collecting blocks", collect_dropped)?;
        gone += blocks.1;
        remove_parts(family, &blocks.0)?;
    }
    if gone == 0 && family.read("looking for work", history::is_behind)? {
        gone = family.write("counting a history", history::count_one)?;
    }
    if gone == 0 {
        gone = walk_parts(family, is_alive)?;
    }
    Ok(gone)
}

fn has_rows(family: &Family, sql: &str) -> Result<bool> {
    family.read("looking for work", |connection| Ok(connection.prepare_cached(sql)?.exists([])?))
}

// === History ===

/// A batch of history that deleted views needed. Returns how many rows went, work that turned out empty included.
pub(super) fn prune(family: &Family) -> Result<u64> {
    if !has_rows(family, "SELECT 1 FROM prune")? {
        return Ok(0);
    }
    family.write("pruning history", |connection| {
        let work = connection
            .prepare_cached("SELECT id, branch, above, below, upto FROM prune ORDER BY id LIMIT 1")?
            .query_row([], |row| {
                Ok(Work {
                    id: row.get(0)?,
                    branch: row.get(1)?,
                    above: row.get(2)?,
                    below: row.get(3)?,
                    upto: row.get(4)?,
                })
            })
            .optional()?;
        let Some(work) = work else { return Ok(0) };
        let gone = work.run(connection)?;
        if gone == 0 {
            connection.prepare_cached("DELETE FROM prune WHERE id = ?1")?.execute([work.id])?;
            return Ok(1);
        }
        Ok(gone)
    })
}

/// Between kept views `above` and `upto` lies `below`, which is gone: versions born after the first
/// that died after `below`, up to the second, are seen by nobody. `upto` = MAX: nothing later is seen at all.
struct Work {
    id: i64,
    branch: BranchId,
    above: Layer,
    below: Layer,
    upto: Layer,
}

impl Work {
    fn run(&self, connection: &Connection) -> Outcome<u64> {
        let mut gone = 0;
        let counted = history::counted_upto(connection, self.branch)?;
        let mut less = 0;
        for (table, key, more) in [
            ("inode_h", "ino", "0"),
            ("dentry_h", "parent, name", "0"),
            ("xattr_h", "ino", "coalesce(length(data), 0)"),
        ] {
            let sql = format!(
                "DELETE FROM {table} WHERE branch = ?1 AND ({key}, died) IN (SELECT {key}, died FROM {table}
                 WHERE branch = ?1 AND died > ?2 AND died <= ?3 AND born > ?4 LIMIT {BATCH})
                 RETURNING died, {more}"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params![self.branch, self.below, self.upto, self.above])?;
            while let Some(row) = rows.next()? {
                gone += 1;
                if row.get::<_, Layer>(0)? <= counted {
                    less += ROW_BYTES + row.get::<_, i64>(1)?;
                }
            }
        }
        gone += self.extents(connection, counted, &mut less)?;
        history::adjust(connection, self.branch, -less)?;
        if self.upto == Layer::MAX && gone == 0 {
            gone += self.current(connection)?;
            if gone > 0 {
                history::recount_left(connection, self.branch)?;
            }
        }
        Ok(gone)
    }

    /// Adds to `less` what versions took that are `counted`.
    fn extents(&self, connection: &Connection, counted: Layer, less: &mut i64) -> Outcome<u64> {
        let sql = format!(
            "SELECT did, blk, born, kind, block, died FROM ext_h
             WHERE branch = ?1 AND died > ?2 AND died <= ?3 AND born > ?4 LIMIT {BATCH}"
        );
        let parameters = params![self.branch, self.below, self.upto, self.above];
        let found = versions(connection, &sql, parameters, self.branch)?;
        let mut delete = connection
            .prepare_cached("DELETE FROM ext_h WHERE branch = ?1 AND did = ?2 AND blk = ?3 AND died = ?4")?;
        for row in &found {
            let (did, blk) = (int(row.version.did), int(row.version.blk));
            if row.died <= counted {
                *less += history::of_extent(connection, self.branch, did, blk, row.died)?;
            }
            row.version.drop_content(connection, row.kind, row.block)?;
            delete.execute(params![self.branch, did, blk, row.died])?;
        }
        Ok(found.len() as u64)
    }

    /// Current rows that no view is late enough to see.
    fn current(&self, connection: &Connection) -> Outcome<u64> {
        let mut gone = 0;
        for (table, key) in
            [("inode", "ino"), ("dentry", "parent, name"), ("xattr", "ino"), ("cut", "did, born")]
        {
            let sql = format!(
                "DELETE FROM {table} WHERE branch = ?1 AND ({key}) IN
                 (SELECT {key} FROM {table} WHERE branch = ?1 AND born > ?2 LIMIT {BATCH})"
            );
            gone += connection.prepare_cached(&sql)?.execute(params![self.branch, self.above])? as u64;
        }
        let sql = format!(
            "SELECT did, blk, born, kind, block, 0 FROM ext WHERE branch = ?1 AND born > ?2 LIMIT {BATCH}"
        );
        let found = versions(connection, &sql, params![self.branch, self.above], self.branch)?;
        delete_current(connection, &found)?;
        Ok(gone + found.len() as u64)
    }
}

/// A version of an extent row that goes.
struct Going {
    version: Version,
    kind: i64,
    block: Option<i64>,
    died: Layer,
}

fn versions(
    connection: &Connection,
    sql: &str,
    parameters: &[&dyn rusqlite::ToSql],
    branch: BranchId,
) -> Outcome<Vec<Going>> {
    let decode = |row: &Row<'_>| {
        let version = Version { branch, did: number(row, 0)?, blk: number(row, 1)?, born: row.get(2)? };
        Ok(Going { version, kind: row.get(3)?, block: row.get(4)?, died: row.get(5)? })
    };
    Ok(connection.prepare_cached(sql)?.query_map(parameters, decode)?.collect::<rusqlite::Result<_>>()?)
}

fn delete_current(connection: &Connection, found: &[Going]) -> Outcome<()> {
    let mut delete =
        connection.prepare_cached("DELETE FROM ext WHERE branch = ?1 AND did = ?2 AND blk = ?3")?;
    for row in found {
        row.version.drop_content(connection, row.kind, row.block)?;
        delete.execute(params![row.version.branch, int(row.version.did), int(row.version.blk)])?;
    }
    Ok(())
}

// === Contents that died ===

fn reap_dead(connection: &Connection) -> Outcome<u64> {
    let dead: Vec<(BranchId, DataId, Layer)> = connection
        .prepare_cached("SELECT branch, did, died FROM dead WHERE reaped = 0 LIMIT 100")?
        .query_map([], |row| Ok((row.get(0)?, number(row, 1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut left = BATCH;
    let mut gone = 0;
    for (branch, did, died) in dead {
        let sql = "SELECT did, blk, born, kind, block, 0 FROM ext WHERE branch = ?1 AND did = ?2 LIMIT ?3";
        let found = versions(connection, sql, params![branch, int(did), left], branch)?;
        left -= found.len() as i64;
        gone += found.len() as u64;
        for row in &found {
            let Version { blk, born, .. } = row.version;
            let is_seen = connection
                .prepare_cached(
                    "SELECT 1 FROM layer WHERE branch = ?1 AND layer >= ?2 AND layer < ?3
                     UNION ALL SELECT 1 FROM branch WHERE parent = ?1 AND parent_layer >= ?2 AND parent_layer < ?3",
                )?
                .exists(params![branch, born, died])?;
            if is_seen {
                if died <= history::counted_upto(connection, branch)? {
                    let more = history::of_extent(connection, branch, int(did), int(blk), 0)?;
                    history::adjust(connection, branch, more)?;
                }
                connection
                    .prepare_cached(
                        "INSERT OR REPLACE INTO ext_h SELECT *, ?4 FROM ext
                         WHERE branch = ?1 AND did = ?2 AND blk = ?3",
                    )?
                    .execute(params![branch, int(did), int(blk), died])?;
            } else {
                row.version.drop_content(connection, row.kind, row.block)?;
            }
            connection
                .prepare_cached("DELETE FROM ext WHERE branch = ?1 AND did = ?2 AND blk = ?3")?
                .execute(params![branch, int(did), int(blk)])?;
        }
        if left <= 0 {
            break;
        }
        // Where ancestors may have rows of it, that it is dead has to be known as long as they are ancestors.
        for done in [
            "DELETE FROM dead WHERE branch = ?1 AND did = ?2
             AND EXISTS(SELECT 1 FROM branch b WHERE b.branch = ?1 AND (b.parent IS NULL OR ?2 >= b.ino_floor))",
            "UPDATE dead SET reaped = 1 WHERE branch = ?1 AND did = ?2",
        ] {
            connection.prepare_cached(done)?.execute(params![branch, int(did)])?;
        }
        gone += 1;
    }
    Ok(gone)
}

// === Blocks ===

/// Removes headers of candidates that nothing refers to: their ids, and how many candidates were looked at.
fn collect_dropped(connection: &Connection) -> Outcome<(Vec<BlockId>, u64)> {
    let candidates: Vec<i64> = connection
        .prepare_cached("SELECT block FROM dropped ORDER BY block LIMIT ?1")?
        .query_map([BATCH], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut remove = connection.prepare_cached(
        "DELETE FROM block WHERE block = ?1 AND NOT EXISTS(SELECT 1 FROM ext WHERE kind = 1 AND block = ?1)
         AND NOT EXISTS(SELECT 1 FROM ext_h WHERE kind = 1 AND block = ?1)",
    )?;
    let mut forget = connection.prepare_cached("DELETE FROM dropped WHERE block = ?1")?;
    let mut gone = Vec::new();
    for block in &candidates {
        if remove.execute([block])? > 0 {
            gone.push(*block as u64);
        }
        forget.execute([block])?;
    }
    Ok((gone, candidates.len() as u64))
}

/// See [`crate::TenantStore::stray_blocks`].
pub(super) fn stray(
    connection: &Connection,
    after: BlockId,
    limit: usize,
) -> Outcome<(Vec<BlockId>, Option<BlockId>)> {
    let page: Vec<BlockId> = connection
        .prepare_cached("SELECT block FROM block WHERE block > ?1 ORDER BY block LIMIT ?2")?
        .query_map(params![int(after), limit as i64], |row| number(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    let next = page.last().copied().filter(|_| page.len() == limit);
    let mut is_known = connection.prepare_cached(
        "SELECT 1 FROM ext WHERE kind = 1 AND block = ?1 UNION ALL SELECT 1 FROM ext_h WHERE kind = 1 AND block = ?1
         UNION ALL SELECT 1 FROM dropped WHERE block = ?1 LIMIT 1",
    )?;
    let mut stray = Vec::new();
    for block in page {
        if !is_known.exists([int(block)])? {
            stray.push(block);
        }
    }
    Ok((stray, next))
}

/// See [`crate::TenantStore::offer_blocks`].
pub(super) fn offer(connection: &Connection, blocks: &[BlockId]) -> Outcome<()> {
    let mut put = connection.prepare_cached("INSERT OR IGNORE INTO dropped(block) VALUES(?1)")?;
    for block in blocks {
        put.execute([int(*block)])?;
    }
    Ok(())
}

fn remove_parts(family: &Family, blocks: &[BlockId]) -> Result<()> {
    if blocks.is_empty() {
        return Ok(());
    }
    family.write_blocks("removing blocks", |connection| {
        let mut remove = connection.prepare_cached("DELETE FROM block_part WHERE block = ?1")?;
        for block in blocks {
            remove.execute([int(*block)])?;
        }
        Ok(())
    })?;
    give_back(family)
}

/// Gives space back to the file system where much is free; a little is kept for what comes next.
fn give_back(family: &Family) -> Result<()> {
    let (free, all) = family.read_blocks("looking at free space", |connection| {
        let count = |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        Ok((count("PRAGMA freelist_count")?, count("PRAGMA page_count")?))
    })?;
    if free < 1024 || free < all / 4 {
        return Ok(());
    }
    family.write_blocks("giving space back", |connection| {
        let mut statement = connection.prepare("PRAGMA incremental_vacuum(512)")?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    })
}

/// Looks at some parts, and removes those without a header that no living writer may still commit.
fn walk_parts(family: &Family, is_alive: &dyn Fn(SessionId) -> bool) -> Result<u64> {
    let bound = family.read("looking for writers", |connection| {
        let mut bound = connection.query_row("SELECT next_block FROM family", [], |row| number(row, 0))?;
        let mut statement =
            connection.prepare_cached("SELECT session, uploads_from FROM tenant WHERE held = 1")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if is_alive(SessionId(rows::uuid(row, 0)?)) {
                bound = bound.min(number(row, 1)?);
            }
        }
        Ok(bound)
    })?;
    let from = family.parts_cursor.load(Ordering::Relaxed);
    let page: Vec<u64> = family.read_blocks("looking for uploads", |connection| {
        Ok(connection
            .prepare_cached(
                "SELECT block FROM block_part WHERE block > ?1 AND block < ?2 ORDER BY block LIMIT ?3",
            )?
            .query_map(params![int(from), int(bound), WALK], |row| number(row, 0))?
            .collect::<rusqlite::Result<_>>()?)
    })?;
    let next = if (page.len() as i64) < WALK { 0 } else { page.last().copied().unwrap_or(0) };
    family.parts_cursor.store(next, Ordering::Relaxed);
    let lost = family.read("looking for headers", |connection| {
        let mut exists = connection.prepare_cached("SELECT 1 FROM block WHERE block = ?1")?;
        let mut lost = Vec::new();
        for block in page {
            if !exists.exists([int(block)])? {
                lost.push(block);
            }
        }
        Ok(lost)
    })?;
    remove_parts(family, &lost)?;
    Ok(lost.len() as u64)
}

// === Branches and tenants ===

/// Rows of a branch that is no living tenant's head, and that no layer and no child keeps.
fn reap_branches(family: &Family) -> Result<u64> {
    // Who holds a tenant that was deleted goes on.
    const DEAD: &str = "SELECT branch FROM branch b
         WHERE NOT EXISTS(SELECT 1 FROM tenant WHERE head_branch = b.branch AND (state = 0 OR held = 1))
           AND NOT EXISTS(SELECT 1 FROM layer WHERE branch = b.branch)
           AND NOT EXISTS(SELECT 1 FROM branch WHERE parent = b.branch) LIMIT 1";
    if !has_rows(family, DEAD)? {
        return Ok(0);
    }
    family.write("reaping a branch", |connection| {
        let Some(branch) =
            connection.prepare_cached(DEAD)?.query_row([], |row| row.get::<_, i64>(0)).optional()?
        else {
            return Ok(0);
        };
        let everything = Work { id: 0, branch, above: -1, below: -1, upto: Layer::MAX };
        let gone = everything.run(connection)?;
        if gone > 0 {
            return Ok(gone);
        }
        remove_branch(connection, branch)?;
        Ok(1)
    })
}

fn remove_branch(connection: &Connection, branch: BranchId) -> Outcome<()> {
    let parent: Option<(BranchId, Layer)> = connection
        .prepare_cached("SELECT parent, parent_layer FROM branch WHERE branch = ?1 AND parent IS NOT NULL")?
        .query_row([branch], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    for table in ["dead", "prune", "branch"] {
        connection.execute(&format!("DELETE FROM {table} WHERE branch = ?1"), [branch])?;
    }
    match parent {
        Some((parent, layer)) => layers::forget_fork(connection, parent, layer),
        None => Ok(()),
    }
}

/// A batch of a deleted tenant's data; true when nothing of it is left but what clones of it need.
pub(super) fn reap(family: &Family, id: TenantId) -> Result<bool> {
    let tenant = id.0.as_bytes();
    let kept: Vec<(BranchId, Layer)> = family.read("reaping a tenant", |connection| {
        Ok(connection
            .prepare_cached("SELECT branch, layer FROM layer WHERE tenant = ?1 LIMIT 100")?
            .query_map([tenant], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?)
    })?;
    if !kept.is_empty() {
        family.write("reaping a tenant", |connection| {
            for (branch, layer) in kept {
                let at = params![branch, layer];
                connection.execute("DELETE FROM layer WHERE branch = ?1 AND layer = ?2", at)?;
                let is_fork = connection
                    .prepare_cached("SELECT 1 FROM branch WHERE parent = ?1 AND parent_layer = ?2")?
                    .exists(at)?;
                if !is_fork {
                    layers::leave_prune_work(connection, branch, layer)?;
                }
            }
            Ok(())
        })?;
        return Ok(false);
    }
    if prune(family)? > 0 || reap_branches(family)? > 0 {
        return Ok(false);
    }
    if family.write("reaping a tenant", |connection| audit::remove(connection, id, u64::MAX >> 1))? > 0 {
        return Ok(false);
    }
    family.write("reaping a tenant", |connection| forget_tenant(connection, id))?;
    Ok(true)
}

/// Removes a tenant's row; branches that clones still look through belong to nobody from now on.
pub(super) fn forget_tenant(connection: &Connection, id: TenantId) -> Outcome<()> {
    let tenant = id.0.as_bytes();
    // Beyond the last fork nobody sees anything of the old head.
    let head: Option<BranchId> = connection
        .prepare_cached("SELECT head_branch FROM tenant WHERE id = ?1")?
        .query_row([tenant], |row| row.get(0))
        .optional()?;
    connection.execute("DELETE FROM tenant WHERE id = ?1", [tenant])?;
    connection.execute("DELETE FROM audit WHERE tenant = ?1", [tenant])?;
    connection.execute("UPDATE branch SET tenant = NULL WHERE tenant = ?1", [tenant])?;
    if let Some(branch) = head {
        layers::leave_prune_work(connection, branch, Layer::MAX - 1)?;
    }
    Ok(())
}
