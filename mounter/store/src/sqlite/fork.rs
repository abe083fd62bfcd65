//! New branches, and how chains stay short.

use rusqlite::{Connection, params};
use tarbox_types::{BranchId, Ino, Layer, TenantId};

use super::{
    commit::Version,
    fault::Outcome,
    rows::{self, int, number},
};
use crate::model::AllocMap;

/// From here on a branch with few rows is copied rather than built upon. Of more a longer chain is made, which is flattened in the background:
/// a restore takes no longer for what there is.
const DEPTH_GOOD: usize = 4;
/// "Few": copied in a few milliseconds.
const FEW: i64 = 1_000;

/// A branch of `tenant` that begins at a layer. Keys with numbers from `ino_floor` on are unknown there.
pub(super) fn fork(
    connection: &Connection,
    tenant: TenantId,
    branch: BranchId,
    layer: Layer,
    ino_floor: Ino,
    fork_seq: u64,
) -> Outcome<BranchId> {
    let new: BranchId = connection.query_row(
        "UPDATE family SET next_branch = next_branch + 1 RETURNING next_branch - 1",
        [],
        |row| row.get(0),
    )?;
    let chain = rows::view(connection, branch, layer)?.chain;
    let insert = |parent: (BranchId, Layer), floor: Ino| {
        connection.execute(
            "INSERT INTO branch(branch, tenant, parent, parent_layer, ino_floor, fork_seq)
             VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
            params![new, tenant.0.as_bytes(), parent.0, parent.1, int(floor), int(fork_seq)],
        )
    };
    // What the parent has of its own is small as a rule; its own parent, the base, is not.
    if let Some(grandparent) = chain.get(1) {
        let own = own_rows(connection, branch, layer)?;
        let depth = chain.len() + 1;
        if own == 0 || (depth > DEPTH_GOOD && own < FEW) {
            insert((grandparent.branch, grandparent.layer), chain[0].ino_floor)?;
            copy_own(connection, branch, layer, new)?;
            connection.execute(
                "UPDATE branch SET origin = ?2, origin_layer = ?3 WHERE branch = ?1",
                params![new, branch, layer],
            )?;
            return Ok(new);
        }
    }
    insert((branch, layer), ino_floor)?;
    Ok(new)
}

/// How many rows of its own a branch shows at a layer; counting ends at [`FEW`].
fn own_rows(connection: &Connection, branch: BranchId, layer: Layer) -> Outcome<i64> {
    let mut sum = 0;
    for table in ["inode", "dentry", "xattr", "ext"] {
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {table} WHERE branch = ?1 AND born <= ?2
             UNION ALL SELECT 1 FROM {table}_h WHERE branch = ?1 AND born <= ?2 AND died > ?2 LIMIT {FEW})"
        );
        sum +=
            connection.prepare_cached(&sql)?.query_row(params![branch, layer], |row| row.get::<_, i64>(0))?;
    }
    sum += connection
        .prepare_cached("SELECT count(*) FROM cut WHERE branch = ?1 AND born <= ?2")?
        .query_row(params![branch, layer], |row| row.get::<_, i64>(0))?;
    Ok(sum)
}

/// Copies what a branch shows of its own at a layer, whiteouts too, into a new one beside it.
fn copy_own(connection: &Connection, from: BranchId, layer: Layer, to: BranchId) -> Outcome<()> {
    const INODE: &str =
        "dead, mode, uid, gid, rdev, nlink, size, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns,
         dir_parent, did, cut, charge, prealloc, target";
    let tables =
        [("inode", "ino", INODE), ("dentry", "parent, name", "ino, kind, cookie"), ("xattr", "ino", "data")];
    for (table, key, values) in tables {
        let sql = format!(
            "INSERT INTO {table}(branch, {key}, born, {values})
             SELECT ?3, {key}, 1, {values} FROM {table} WHERE branch = ?1 AND born <= ?2
             UNION ALL SELECT ?3, {key}, 1, {values} FROM {table}_h WHERE branch = ?1 AND born <= ?2 AND died > ?2"
        );
        connection.prepare_cached(&sql)?.execute(params![from, layer, to])?;
    }
    connection
        .prepare_cached(
            "INSERT INTO cut(branch, did, born, blk) SELECT ?3, did, 1, min(blk) FROM cut
             WHERE branch = ?1 AND born <= ?2 GROUP BY did",
        )?
        .execute(params![from, layer, to])?;
    connection
        .prepare_cached(
            "INSERT INTO dead(branch, did, died, reaped) SELECT ?3, did, 1, 1 FROM dead
             WHERE branch = ?1 AND died <= ?2",
        )?
        .execute(params![from, layer, to])?;
    copy_extents(connection, from, layer, to)
}

fn copy_extents(connection: &Connection, from: BranchId, layer: Layer, to: BranchId) -> Outcome<()> {
    // Contents that were dead by then are not reachable from the new branch either.
    let mut statement = connection.prepare_cached(
        "SELECT did, blk, born, kind, alloc, block FROM ext WHERE branch = ?1 AND born <= ?2
           AND did NOT IN (SELECT did FROM dead WHERE branch = ?1 AND died <= ?2)
         UNION ALL SELECT did, blk, born, kind, alloc, block FROM ext_h
           WHERE branch = ?1 AND born <= ?2 AND died > ?2",
    )?;
    let found: Vec<(Version, i64, AllocMap, i64)> = statement
        .query_map(params![from, layer], |row| {
            let version =
                Version { branch: from, did: number(row, 0)?, blk: number(row, 1)?, born: row.get(2)? };
            let block = row.get::<_, Option<i64>>(5)?.unwrap_or(0);
            Ok((version, row.get(3)?, rows::alloc(row, 4)?, block))
        })?
        .collect::<rusqlite::Result<_>>()?;
    for (old, kind, alloc, block) in found {
        let new = Version { branch: to, did: old.did, blk: old.blk, born: 1 };
        old.copy_to(connection, &new, kind, &alloc, block)?;
    }
    Ok(())
}
